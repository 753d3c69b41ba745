"""LoTM against a triple loop written from the paper's section 4."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.plan import Plan
from tokred.core.reduction import compose
from tokred.core.vit import ReducedViT
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
