"""DTEM: ToMe on its metric at inference; in training the gradients of a soft merge, written out in loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.reduction import Merge, Mix
from tokred.methods.dtem import DTEM
from tokred.methods.tome import ToMe
from tokred.testing import build, make_view


@given(st.integers(2, 20), st.sampled_from([0, 1, 2]), st.integers(0, 100), st.data())
def test_inference_is_tome_on_the_metric(n, prefix, seed, data):
    keep = data.draw(st.integers(n - n // 2, n - 1))
    view, reducer = make_view(n=n, prefix=prefix, seed=seed), build(DTEM, n, keep)
    x = view.x.double()
    normalized = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False)
    metric = (normalized @ reducer.metric.weight.double().mT + reducer.metric.bias.double()).float()
    by_keys = make_view(n=n, prefix=prefix, seed=seed, key_metric=metric)
    decision, want = reducer(view), ToMe(n, keep, 48, 3)(by_keys)
    assert isinstance(decision, Merge)
    assert torch.equal(decision.labels(), want.labels())
    torch.testing.assert_close(decision.pool(view.x), want.pool(view.x))


def test_training_merges_as_inference_does():
    view, reducer = make_view(n=12), build(DTEM, 12, 7)
    want = reducer(view)
    decision = reducer.train()(view)
    assert isinstance(decision, Mix)
    torch.testing.assert_close(decision.pool(view.x), want.pool(view.x))
    torch.testing.assert_close(decision.sizes(view.size), want.sizes(view.size))


def test_training_has_the_gradients_of_a_soft_merge():
    view, reducer = make_view(batch=1, n=6), build(DTEM, 6, 4).train()
    target = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    (reducer(view).pool(view.x)[0] * target).sum().backward()

    weight = reducer.metric.weight.detach().double().requires_grad_()
    x, size = view.x[0].double(), view.size[0].double()
    normalized = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False)
    tokens = normalized @ weight.mT + reducer.metric.bias.detach().double()
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    a, b = [1, 3, 5], [0, 2, 4]
    similarity = torch.stack([torch.stack([tokens[i] @ tokens[j] for j in b]) for i in a])
    best = similarity.max(1).values
    ranked = best.detach().sort(descending=True).values
    chosen = torch.sigmoid((best - (ranked[1] + ranked[2]) / 2) / 0.1)  # two of three are merged
    share = torch.softmax(similarity / 0.1, 1)
    loss = 0
    for k, j in enumerate(b):  # the outputs are one of A, then all of B
        parts = [size[i] * chosen[row] * share[row, k] for row, i in enumerate(a)]
        total = size[j] + sum(parts)
        mean = (size[j] * x[j] + sum(part * x[i] for part, i in zip(parts, a, strict=True))) / total
        loss = loss + (mean * target[1 + k]).sum()
    loss.backward()
    np.testing.assert_allclose(reducer.metric.weight.grad.numpy(), weight.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_calibration_finds_keys_that_are_linear_in_the_normalised_tokens():
    view = make_view(n=64)
    normalized = torch.nn.functional.layer_norm(view.x, (48,))
    rng = torch.Generator().manual_seed(0)
    keys = normalized @ torch.randn(48, 16, generator=rng) + torch.randn(16, generator=rng)
    linear, reducer = make_view(n=64, key_metric=keys), DTEM(64, 40, 48, 3).eval()
    with torch.no_grad():
        reducer.calibrate(linear)
        torch.testing.assert_close(reducer.metric(normalized), keys, atol=0.2, rtol=0.05)
        same = (reducer(linear).labels() == ToMe(64, 40, 48, 3)(linear).labels()).float().mean()
    assert same > 0.9
