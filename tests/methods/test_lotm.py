"""LoTM against a triple loop written from the paper's section 4."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core import curves
from tokred.core.costs import CostTable
from tokred.core.plan import Plan
from tokred.core.reduction import compose
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.methods.lotm import LoTM
from tokred.testing import make_view, tiny_vit


def oracle(x, removed, order="inplace", weight=None):
    """One image: neighbouring pairs by cosine similarity, the best `removed` merged into their mean."""
    n = len(x)
    scores = []
    for p in range(n // 2):
        a, b = x[2 * p], x[2 * p + 1]
        scores.append((-(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)), p))
    chosen = [p for _, p in sorted(scores)[:removed]]
    out, merged = [], {}
    for i in range(n):
        pair = i // 2
        if pair in chosen and i < n // 2 * 2:
            if i % 2 == 0:
                w = (1.0, 1.0) if weight is None else (weight[i], weight[i + 1])
                mean = (w[0] * x[i] + w[1] * x[i + 1]) / sum(w)
                merged[pair] = mean
                if order == "inplace":
                    out.append(mean)
        else:
            out.append(x[i])
    return np.stack(out + ([merged[p] for p in chosen] if order == "append" else []))


@given(st.integers(2, 30), st.integers(0, 1000), st.sampled_from(["inplace", "append"]), st.data())
def test_oracle(n, seed, order, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, seed=seed)
    pooled = LoTM(n, n - removed, 48, 3, order=order)(view).pool(view.x)
    for b in range(3):
        np.testing.assert_allclose(
            pooled[b].numpy(), oracle(view.x[b].double().numpy(), removed, order), atol=1e-5
        )


def snake(rows, columns):
    """Patches of a grid in the order of a snake, by their places."""
    patches = [(row, column) for row in range(rows) for column in range(columns)]
    patches.sort(key=lambda place: (place[0], place[1] if place[0] % 2 == 0 else -place[1]))
    return [row * columns + column for row, column in patches]


CURVES = {  # of a grid of 4 x 4
    "raster": list(range(16)),
    "snake": snake(4, 4),
    "hilbert": [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3],
}


def runs(x, removed, window):
    """One image: the most similar neighbours of all windows merge; runs of them as lists of tokens."""
    scores = [
        (-(x[i] @ x[i - 1]) / (np.linalg.norm(x[i]) * np.linalg.norm(x[i - 1])), i)
        for start in range(0, len(x), window)
        for i in range(start + 1, min(start + window, len(x)))
    ]
    joins = {i for _, i in sorted(scores)[:removed]}
    groups = []
    for i in range(len(x)):
        if i in joins:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@given(st.sampled_from([*CURVES]), st.integers(2, 20), st.integers(1, 8), st.booleans(), st.integers(0, 1000))
def test_curves_and_windows(curve, window, removed, weighted, seed):
    view = make_view(n=16, seed=seed)
    decision = LoTM(16, 16 - removed, 48, 3, curve=curve, window=window, weighted=weighted)(view)
    pooled = decision.pool(view.x).numpy()
    for image in range(3):
        x = view.x[image].double().numpy()[CURVES[curve]]
        weight = view.size[image].numpy()[CURVES[curve]] if weighted else np.ones(16)
        want = [weight[run] @ x[run] / weight[run].sum() for run in runs(x, removed, window)]
        np.testing.assert_allclose(pooled[image], want, atol=1e-5)


@pytest.mark.parametrize("curve", [*CURVES])
@pytest.mark.parametrize(
    ("rows", "columns", "n"), [(3, 5, 15), (5, 3, 15), (1, 8, 8), (7, 7, 49), (4, 4, 14)]
)
def test_any_grid_has_pairs_of_the_curve(curve, rows, columns, n):
    view = make_view(n=n, grid=(rows, columns))
    label = LoTM(n, n - n // 2, 48, 3, curve=curve)(view).labels()[0].tolist()
    order = curves.along(curve, (rows, columns), n, "cpu").tolist()
    assert [label[patch] for patch in order] == [place // 2 for place in range(n)]
    if n == rows * columns and curve == "snake":
        assert order == snake(rows, columns)


@pytest.mark.slow
@pytest.mark.parametrize(("curve", "window"), [("snake", 2), ("hilbert", 2), ("hilbert", 5)])
def test_tokens_stay_runs_of_the_curve_over_stages_and_compile(curve, window, images):
    options = {"curve": curve, "window": window}
    model = ReducedViT(tiny_vit(), Plan("lotm", (2, 3, 4), (26, 18, 11), options))
    small = ReducedViT(tiny_vit(depth=2), Plan("lotm", (1, 2), (26, 18), options))
    torch._dynamo.reset()
    with torch.no_grad():
        state = model.run(images)
        assert torch.equal(torch.compile(small, backend="eager", fullgraph=True)(images), small(images))
    order = curves.along(curve, (6, 6), 36, "cpu")
    for image in compose(state.reductions)[:, :, order] > 0:
        assert (image.int().diff(dim=1) == 1).sum(1).max() <= 1  # one run each ...
        assert image.int().argmax(1).diff().min() > 0  # ... in the order of the curve


@pytest.mark.parametrize("window", [2, 4, 36])
def test_budgets_are_met_with_any_window(window):
    """The search extrapolates the cost of a stage from fewer tokens."""
    costs, plan = CostTable(tiny_vit()), Plan("lotm", (2,), (30,), {"window": window})
    for n, keep in ((36, 30), (35, 20)):
        assert costs.reducer_estimate(plan, n, keep) == pytest.approx(costs.stage(plan, 2, n, keep))


def test_windows_are_of_two_or_more_and_in_place():
    with pytest.raises(TokredError, match=r"lotm.window is a number of neighbours, at least 2, got 1"):
        LoTM(16, 12, 48, 3, window=1)
    with pytest.raises(TokredError, match=r'lotm.order="append" is defined for pairs'):
        LoTM(16, 12, 48, 3, window=3, order="append")


def test_weighted_mean_and_key_metric():
    view = make_view(n=12)
    pooled = LoTM(12, 9, 48, 3, weighted=True)(view).pool(view.x)
    np.testing.assert_allclose(
        pooled[0].numpy(), oracle(view.x[0].numpy(), 3, weight=view.size[0].numpy()), atol=1e-5
    )
    label = LoTM(12, 9, 48, 3, metric="keys")(view).labels()[0]
    keys = view.attention.k[0, :, 1:].mean(0).numpy()
    want = oracle(keys, 3)
    for slot in range(9):
        np.testing.assert_allclose(keys[label == slot].mean(0), want[slot], atol=1e-5)


@given(st.integers(4, 30), st.integers(0, 1000))
def test_invariants(n, seed):
    view = make_view(n=n, seed=seed)
    reducer = LoTM(n, n - n // 4 - 1, 48, 3)
    decision = reducer(view)
    pooled = decision.pool(view.x)
    rescaled = make_view(n=n, seed=seed, x=view.x * (torch.rand(3, n, 1) + 0.5))
    assert torch.equal(reducer(rescaled).labels(), decision.labels())  # cosine ignores lengths
    assert (pooled.amax(1) <= view.x.amax(1) + 1e-6).all()  # outputs lie within the inputs
    assert (pooled.amin(1) >= view.x.amin(1) - 1e-6).all()


def test_ties_go_to_the_left():
    view = make_view(n=8, x=torch.ones(3, 8, 48))
    assert LoTM(8, 6, 48, 3)(view).labels()[0].tolist() == [0, 0, 1, 1, 2, 3, 4, 5]


def test_locality_is_the_point():
    """Permuting tokens changes the result: LoTM is not equivariant, on purpose."""
    view = make_view(n=12)
    order = torch.tensor([1, 0, *range(11, 1, -1)]).roll(3)
    moved = LoTM(12, 8, 48, 3)(make_view(n=12, x=view.x[:, order])).pool(view.x[:, order])
    pooled = LoTM(12, 8, 48, 3)(view).pool(view.x)
    assert not torch.allclose(moved.sum(1), pooled.sum(1), atol=1e-3)


@pytest.mark.parametrize("n", [36])
def test_every_token_stays_a_run_of_at_most_eight_patches(images, n):
    model = ReducedViT(tiny_vit(), Plan("lotm", (2, 3, 4), (26, 18, 11)))
    with torch.no_grad():
        source = compose(model.run(images).reductions)
    for image in source:
        for row in image:
            held = row.nonzero().flatten()
            assert len(held) == held[-1] - held[0] + 1 <= 8


def test_order_matters_only_from_the_second_stage(images):
    def logits(order, stages, tokens):
        with torch.no_grad():
            return ReducedViT(tiny_vit(), Plan("lotm", stages, tokens, {"order": order}))(images)

    assert torch.allclose(logits("inplace", (2,), (26,)), logits("append", (2,), (26,)), atol=1e-5)
    assert not torch.allclose(
        logits("inplace", (2, 3), (26, 18)), logits("append", (2, 3), (26, 18)), atol=1e-5
    )
