"""ToMe against loops over the whole sequence, prefix included, as the paper states it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.methods.tome import ToMe
from tokred.testing import make_view, tiny_vit


def oracle(metric, x, size, prefix, removed):
    """One image, rows with the prefix first: (patch rows after merging, sizes)."""
    unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    a, b = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    best = []
    for i in a:
        if i < prefix:
            continue
        scores = [(-(unit[i] @ unit[j]) if j >= prefix else np.inf, k) for k, j in enumerate(b)]
        value, k = min(scores)
        best.append((value, i, b[k]))
    merged = sorted(best, key=lambda item: (item[0], item[1]))[:removed]
    groups = {j: [j] for j in b}
    for _, i, j in merged:
        groups[j].append(i)
    sources = {i for _, i, _ in merged}
    rows = [[i] for i in a if i not in sources and i >= prefix] + [groups[j] for j in b if j >= prefix]
    sizes = [size[row].sum() for row in rows]
    return np.stack([(size[row, None] * x[row]).sum(0) / size[row].sum() for row in rows]), np.array(sizes)


@given(st.integers(2, 24), st.sampled_from([0, 1, 2, 5]), st.integers(0, 1000), st.data())
def test_oracle(n, prefix, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, prefix=prefix, seed=seed)
    decision = ToMe(n, n - removed, 48, 3)(view)
    for b in range(3):
        keys = view.attention.k[b].mean(0).double().numpy()
        x = torch.cat([view.prefix[b], view.x[b]]).double().numpy()
        size = torch.cat([torch.ones(prefix), view.size[b]]).double().numpy()
        rows, sizes = oracle(keys, x, size, prefix, removed)
        np.testing.assert_allclose(decision.pool(view.x)[b].numpy(), rows, atol=1e-5)
        np.testing.assert_allclose(decision.sizes(view.size)[b].numpy(), sizes)


@given(st.integers(2, 24), st.integers(1, 7), st.integers(0, 1000), st.data())
def test_a_checkerboard_on_the_grid(n, columns, seed, data):
    """Whatever the width, and with a last row that is not full."""
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, seed=seed, grid=(-(-n // columns), columns))
    label = ToMe(n, n - removed, 48, 3, split="checkerboard")(view).labels()
    a, b = ([i for i in range(n) if (i // columns + i % columns) % 2 == side] for side in (0, 1))
    for image in range(3):
        keys = view.attention.k[image, :, 1:].mean(0).double().numpy()
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        best = {i: max(b, key=lambda j: unit[i] @ unit[j]) for i in a}
        sources = sorted(a, key=lambda i: -(unit[i] @ unit[best[i]]))[:removed]
        order = [i for i in a if i not in sources] + b
        want = [order.index(best[i] if i in sources else i) for i in range(n)]
        assert label[image].tolist() == want


def test_tokens_that_have_passed_a_stage_alternate(images):
    model = tiny_vit()
    plans = [
        Plan("tome", (2, 3), (18, 12), {"split": split, "metric": "x"})
        for split in ("alternate", "checkerboard")
    ]
    with torch.no_grad():
        states = [ReducedViT(model, plan).run(images) for plan in plans]
    first, second = states[1].reductions
    side = (torch.arange(36) // 6 + torch.arange(36) % 6) % 2
    assert (first.labels()[:, side == 1] == torch.arange(18)).all()  # all of A has joined B
    assert set(second.labels()[0, :].tolist()) == set(range(12))
    alternating = torch.arange(18) % 2 == 0  # set B behind one prefix token
    assert (second.labels()[:, alternating] == torch.arange(3, 12)).all()


def test_class_importance_weighs_by_attention_and_values():
    view = make_view(n=12)
    decision = ToMe(12, 7, 48, 3, weight="class-importance")(view)
    plain = ToMe(12, 7, 48, 3)(view)
    assert torch.equal(decision.labels(), plain.labels())
    assert torch.equal(decision.sizes(view.size), plain.sizes(view.size))
    for b in range(3):
        q, k, v = (getattr(view.attention, name)[b].double().numpy() for name in "qkv")
        scores = np.exp(np.einsum("hd,hnd->hn", q[:, 0], k) * 16**-0.5)
        attention = (scores / scores.sum(1, keepdims=True)).mean(0)[1:]
        weight = attention * np.linalg.norm(v.mean(0), axis=1)[1:]
        for slot in range(7):
            member = decision.labels()[b].numpy() == slot
            want = weight[member] @ view.x[b].double().numpy()[member] / weight[member].sum()
            np.testing.assert_allclose(decision.pool(view.x)[b, slot].numpy(), want, atol=1e-5)


def test_class_importance_needs_a_class_token():
    assert ToMe(12, 7, 48, 3, weight="class-importance").needs_cls
    assert not ToMe(12, 7, 48, 3).needs_cls


def test_rescaling_keys_changes_nothing():
    view = make_view(n=14)
    before = ToMe(14, 9, 48, 3)(view).labels()
    scaled = make_view(n=14)
    scaled.attention.k = scaled.attention.k * 7
    assert torch.equal(ToMe(14, 9, 48, 3)(scaled).labels(), before)


def test_equal_keys_merge_the_first_sources_into_the_first_partner():
    view = make_view(n=6)
    view.attention.k = torch.ones_like(view.attention.k)
    # Patches 1, 3, 5 are set A (even positions behind one prefix token), 0, 2, 4 set B.
    assert ToMe(6, 4, 48, 3)(view).labels()[0].tolist() == [1, 1, 2, 1, 3, 0]


def test_a_zero_key_is_no_nan():
    view = make_view(n=8)
    view.attention.k[:, :, 3] = 0
    assert ToMe(8, 5, 48, 3)(view).pool(view.x).isfinite().all()


def test_sizes_sum_to_the_patches_over_all_layers(images):
    model = ReducedViT(tiny_vit(), Plan("tome", (1, 2, 3, 4), (31, 26, 21, 16)))
    with torch.no_grad():
        state = model.run(images)
    assert torch.equal(state.size.sum(1), torch.full((3,), 36.0))
    assert (state.size >= 1).all()


@pytest.mark.parametrize("distilled", [False, True])
def test_prefix_tokens_pass_the_stage_unchanged(images, distilled):
    model = tiny_vit(reg_tokens=1) if distilled else tiny_vit()
    reduced = ReducedViT(model, Plan("tome", (2,), (20,)))
    with torch.no_grad():
        before = reduced.advance(reduced.embed(images), stop=(2, "mid"))
        after = reduced.stages["mid2"](before)
    prefix = model.num_prefix_tokens
    assert torch.equal(after.x[:, :prefix], before.x[:, :prefix])
