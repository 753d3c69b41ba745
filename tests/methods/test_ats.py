"""ATS against loops: all distances between points and sums, in both variants."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.methods.ats import ATS
from tokred.testing import make_view, tiny_vit


def numbers(view, image):
    """CLS attention [H, N] and values [H, N, d] of the patches of one image."""
    q, k, v = (getattr(view.attention, name)[image].double().numpy() for name in "qkv")
    scores = np.exp(np.stack([k[h] @ q[h, 0] for h in range(len(q))]) * view.attention.scale)
    attention = scores / scores.sum(1, keepdims=True)
    return attention[:, view.num_prefix :], v[:, view.num_prefix :]


def nearest(sums, points):
    """The index of the nearest sum to each point; images with a near-tie are not examples."""
    distance = np.abs(sums[None, :] - points[:, None])
    ranked = np.sort(distance, axis=1)
    assume(len(sums) == 1 or (ranked[:, 1] - ranked[:, 0]).min() > 1e-5)
    return distance.argmin(1)


def published(view, image, count):
    attention, values = numbers(view, image)
    score = attention.sum(0) * np.linalg.norm(np.concatenate(list(values), axis=1), axis=1)
    order = np.argsort(score)
    sums = np.cumsum(score[order] / score.sum())
    sums = (sums - sums.min()) / (sums.max() - sums.min())
    start = min(value for value in sums if value > 0)
    points = np.array([start + (1 - start) * i / (count - 1) for i in range(count)])
    return sorted(set(order[nearest(sums, points)].tolist()))


def benchmark(view, image, count):
    """The half-open range has `count` points, or one more by rounding, as in the benchmark."""
    attention, values = numbers(view, image)
    score = (attention * np.linalg.norm(values, axis=2)).sum(0)
    sums, k = np.cumsum(score / (score.sum() + 1e-6)), count + 1
    return sorted(set(nearest(sums, np.arange(1 / (2 * k), (2 * k - 1) / (2 * k), 2 / (2 * k))).tolist()))


def kept(reducer, view, image):
    label = reducer(view).labels()[image].numpy()
    assert label[label >= 0].tolist() == list(range((label >= 0).sum()))
    return np.flatnonzero(label >= 0).tolist()


@given(st.integers(2, 24), st.sampled_from([1, 2, 5]), st.integers(0, 1000), st.floats(0.1, 0.8))
def test_published(n, prefix, seed, threshold):
    view, reducer = make_view(n=n, prefix=prefix, seed=seed), ATS(n, n, 48, 3)
    reducer.threshold = threshold
    for image in range(3):
        count = max(8, round(n * threshold / (1 - threshold)))
        assert kept(reducer, view, image) == published(view, image, count)


@given(st.integers(2, 24), st.sampled_from([1, 2, 5]), st.integers(0, 1000), st.integers(1, 24))
def test_benchmark(n, prefix, seed, count):
    count = min(count, n)
    view, reducer = make_view(n=n, prefix=prefix, seed=seed), ATS(n, n, 48, 3, variant="benchmark")
    reducer.threshold = (count + 0.5) / n
    for image in range(3):
        assert kept(reducer, view, image) == benchmark(view, image, count)


def test_scores_that_are_all_alike():
    """Published: all but the first, whose sum is 0. Benchmark: one for each point."""
    view = make_view(batch=1, n=196)
    for part in (view.attention.k, view.attention.v):
        part[:] = part[:, :, :1]
    first, second = ATS(196, 196, 48, 3), ATS(196, 196, 48, 3, variant="benchmark")
    assert kept(first, view, 0) == list(range(1, 196))
    assert len(kept(second, view, 0)) == 98


def test_a_token_with_most_of_the_score_takes_most_points():
    view = make_view(batch=1)
    view.attention.v[:, :, 4] *= 1e4
    for variant in ("published", "benchmark"):
        few = kept(ATS(16, 16, 48, 3, variant=variant), view, 0)
        assert 3 in few  # patch 3 stands at position 4
        assert len(few) <= 3


def test_published_does_not_depend_on_the_order_of_tokens():
    order, reducer = torch.randperm(16, generator=torch.Generator().manual_seed(0)), ATS(16, 16, 48, 3)
    moved = make_view()
    for part in (moved.attention.k, moved.attention.v):
        part[:, :, 1:] = part[:, :, 1:][:, :, order]
    assert sorted(order[kept(reducer, moved, 0)].tolist()) == kept(reducer, make_view(), 0)


@pytest.mark.parametrize("variant", ["published", "benchmark"])
@torch.no_grad()
def test_more_of_the_threshold_keeps_more_and_most_keeps_nearly_all(variant, images):
    counts = []
    for threshold in (0.2, 0.5, 0.8, 1.0):
        plan = Plan("ats", (2, 3), (36, 36), {"variant": variant}, threshold)
        counts.append(ReducedViT(tiny_vit(), plan).run(images).counts.float().mean(0).tolist())
    assert counts == sorted(counts)
    assert variant == "benchmark" or counts[-1] == [35, 34]  # all but the lowest
