"""Top-K, EViT and the random control."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.rng import Rng
from tokred.methods.evit import EViT
from tokred.methods.random import Random
from tokred.methods.topk import TopK
from tokred.testing import make_view


def scores(view):
    """CLS row of the explicit attention map, mean over heads, patch columns, [B, n]."""
    a = view.attention
    attention = (a.q.double() @ a.k.double().mT * a.scale).softmax(-1)
    return attention[:, :, 0].mean(1)[:, view.num_prefix :].numpy()


@given(st.integers(2, 30), st.sampled_from([1, 2, 5]), st.integers(0, 1000), st.data())
def test_topk_is_a_sort(n, prefix, seed, data):
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, prefix=prefix, seed=seed)
    want = np.argsort(-scores(view), axis=1, kind="stable")[:, :keep]
    assert TopK(n, keep, 48, 3)(view).index.tolist() == want.tolist()
    assert TopK(n, keep, 48, 3, order="raster")(view).index.tolist() == np.sort(want, 1).tolist()


@given(st.integers(3, 30), st.integers(0, 1000), st.booleans(), st.data())
def test_evit_is_a_loop(n, seed, normalize, data):
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, seed=seed)
    c, x = scores(view), view.x.double().numpy()
    decision = EViT(n, keep, 48, 3, normalize=normalize)(view)
    for b in range(3):
        order = np.argsort(-c[b], kind="stable")
        kept, dropped = order[: keep - 1], order[keep - 1 :]
        fused = sum(c[b, j] * x[b, j] for j in dropped) / (c[b, dropped].sum() if normalize else 1.0)
        want = np.concatenate([x[b, kept], fused[None]])
        np.testing.assert_allclose(decision.pool(view.x)[b].numpy(), want, atol=1e-5)


def test_ties_go_to_the_lower_index():
    view = make_view(n=40)
    view.attention.q.zero_()
    assert TopK(40, 10, 48, 3)(view).index[0].tolist() == list(range(10))
    label = EViT(40, 10, 48, 3)(view).labels()[0]
    assert label.tolist() == [*range(9), *[9] * 31]


def test_evit_keeps_attentive_tokens_bit_for_bit():
    view = make_view(n=20)
    pooled = EViT(20, 8, 48, 3)(view).pool(view.x)
    kept = TopK(20, 7, 48, 3)(view).pool(view.x)
    assert torch.equal(pooled[:, :7], kept)


def test_random_differs_between_images_layers_and_seeds_but_not_between_runs():
    def kept(images=(1, 2, 3), layer=4, seed=0):
        view = make_view(n=40, layer=layer)
        view.rng = Rng(seed, torch.tensor(images), layer)
        return Random(40, 20, 48, 3)(view).index.tolist()

    assert kept() == kept()
    assert kept()[0] != kept()[1]
    assert kept() != kept(layer=7)
    assert kept() != kept(seed=1)
    assert kept((3, 1, 2)) == [
        kept()[2],
        kept()[0],
        kept()[1],
    ]  # a draw belongs to its image, not to its place in the batch


def test_random_numbers_are_uniform():
    view = make_view(n=5000, batch=2)
    numbers = Rng(0, torch.arange(2), 1).uniform(view.x).numpy()
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert counts.min() > 850  # 1,000 expected, deviation 30
    assert abs(np.corrcoef(numbers[0], numbers[1])[0, 1]) < 0.05
    assert len(np.unique(numbers)) > 9_900
