"""LoTM-2D against loops over pairs of places, rows and columns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.pairs import grid_of
from tokred.core.plan import Plan
from tokred.core.reduction import History, Merge, compose
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.methods.lotm2d import LoTM2D
from tokred.testing import make_view, tiny_vit


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def outputs(x, place, removed):
    """One image: groups in their order. Greedy over neighbours, then tokens without a partner in order."""
    n, pairs = len(x), []
    for i in range(n):
        row, column = np.array(place).T - np.array(place[i])[:, None]
        for side in (column > abs(row), (row > 0) & (row >= abs(column))):
            if side.any():
                far = np.where(side, row**2 + column**2, np.inf)
                pairs.append((i, int(far.argmin())))
    pairs.sort(key=lambda pair: -cosine(x[pair[0]], x[pair[1]]))
    free, chosen = set(range(n)), []
    for pair in pairs:
        if free.issuperset(pair):
            free -= set(pair)
            chosen.append(pair)
    rest = sorted(free)
    chosen += zip(rest[:-1:2], rest[1::2], strict=True)
    groups = {i: [i] for i in range(n)}
    for pair in chosen[:removed]:
        groups[min(pair)] += groups.pop(max(pair))
    return list(groups.values())


def matches(decision, view, groups, image, weighted=False):
    x, size = view.x[image].double().numpy(), view.size[image].double().numpy()
    weight = size if weighted else np.ones(len(x))
    want = [weight[group] @ x[group] / weight[group].sum() for group in groups]
    np.testing.assert_allclose(decision.pool(view.x)[image].numpy(), want, atol=1e-5)


@given(st.integers(2, 24), st.integers(1, 6), st.booleans(), st.integers(0, 1000), st.data())
def test_oracle_on_the_grid(n, columns, weighted, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, seed=seed, grid=(-(-n // columns), columns))
    decision = LoTM2D(n, n - removed, 48, 3, weighted=weighted)(view)
    place = [divmod(i, columns) for i in range(n)]
    for image in range(3):
        groups = outputs(view.x[image].double().numpy(), place, removed)
        matches(decision, view, groups, image, weighted)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_oracle_after_a_stage(removed, seed):
    """The first stage merges at random; places are the means of the patches."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.stack([torch.randperm(16, generator=rng) for _ in range(3)])
    label = torch.cat([label, torch.randint(0, 16, (3, 14), generator=rng)], dim=1)  # 30 patches to 16
    history = History(Merge(label, 16))
    view = make_view(n=16, seed=seed, grid=(5, 6), history=history, size=history.size)
    decision = LoTM2D(16, 16 - removed, 48, 3)(view)
    for image in range(3):
        patches = [np.flatnonzero(label[image].numpy() == slot) for slot in range(16)]
        place = [(np.mean(held // 6), np.mean(held % 6)) for held in patches]
        place = np.float32(place).tolist()
        matches(decision, view, outputs(view.x[image].double().numpy(), place, removed), image)


def halve(lines, removed):
    """Groups of positions of one line, whose `removed` most similar pairs (0, 1), (2, 3), ... merge."""
    pairs = range(0, len(lines) - 1, 2)
    best = sorted(pairs, key=lambda i: -cosine(lines[i], lines[i + 1]))[:removed]
    return [[i, i + 1] if i in best else [i] for i in range(len(lines)) if i - 1 not in best]


SIDES = st.integers(1, 6)


@given(SIDES, SIDES, st.booleans(), st.sampled_from(["x", "keys"]), st.integers(0, 1000), st.data())
def test_oracle_of_rectangles(rows, columns, weighted, metric, seed, data):
    high, wide = (data.draw(st.integers(-(-side // 2), side)) for side in (rows, columns))
    n, keep = rows * columns, high * wide
    if not n - n // 2 <= keep < n or grid_of(keep, (rows, columns)) != (high, wide):
        return
    view = make_view(n=n, seed=seed, grid=(rows, columns))
    decision = LoTM2D(n, keep, 48, 3, grid=True, weighted=weighted, metric=metric)(view)
    for image in range(3):
        tokens = (view.x if metric == "x" else view.key_metric)[image].double().numpy()
        weight = view.size[image].double().numpy() if weighted else np.ones(n)

        def mean(group, tokens=tokens, weight=weight):
            return weight[group] @ tokens[group] / weight[group].sum()

        lines = []
        for row in range(rows):
            start = row * columns
            groups = halve(tokens[start : start + columns], columns - wide)
            lines.append([[start + i for i in group] for group in groups])
        grid = [[None] * wide for _ in range(high)]
        for column in range(wide):
            members = [line[column] for line in lines]
            groups = halve(np.stack([mean(group) for group in members]), rows - high)
            for row, group in enumerate(groups):
                grid[row][column] = [patch for i in group for patch in members[i]]
        matches(decision, view, [group for line in grid for group in line], image, weighted)


def test_a_rectangle_stays_one_over_stages(images):
    plan = Plan("lotm2d", (2, 3, 4), (30, 20, 12), {"grid": True, "proportional": True})
    with torch.no_grad():
        state = ReducedViT(tiny_vit(), plan).run(images)
    for image in compose(state.reductions):
        held = [patches.nonzero().flatten() for patches in image]
        row = torch.stack([(patches // 6).float().mean() for patches in held]).unflatten(0, (4, 3))
        column = torch.stack([(patches % 6).float().mean() for patches in held]).unflatten(0, (4, 3))
        assert (row.diff(dim=0) > 0).all()
        assert (column.diff(dim=1) > 0).all()
        for patches in held:  # each is a connected block of rows and runs of columns
            assert (patches // 6).unique().diff().le(1).all()


@pytest.mark.parametrize("keep", [13, 11])
def test_other_numbers_are_refused_with_grid(keep):
    with pytest.raises(TokredError, match=rf"lotm2d.grid keeps .* 16 tokens cannot become {keep} so"):
        LoTM2D(16, keep, 48, 3, grid=True)(make_view())


@pytest.mark.slow
def test_equal_tokens_and_compilers(images):
    view = make_view(n=16, x=torch.ones(3, 16, 48))
    label = LoTM2D(16, 9, 48, 3)(view).labels()
    assert (torch.stack([row.bincount() for row in label]) <= 2).all()
    model = ReducedViT(tiny_vit(depth=2), Plan("lotm2d", (1, 2), (30, 20), {"grid": True}))
    torch._dynamo.reset()
    with torch.no_grad():  # without `grid` it is compiled with all other methods
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))
