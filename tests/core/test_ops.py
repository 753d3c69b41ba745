"""Searches in distance matrices, and sums over groups, against loops in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from tokred.core import ops
from tokred.core.ops import count_groups, sum_groups, take_rows


def drawn(seed, *shape, levels=None):
    """Random numbers; with `levels` few different ones, so that many are equal."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        (rng.integers(0, levels, shape) if levels else rng.normal(size=shape)).astype(np.float32)
    )


def symmetric(seed, n, levels):
    upper = drawn(seed, 2, n, n, levels=levels).triu(1)
    return upper + upper.mT


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12), st.sampled_from([None, 3]))
def test_the_smallest_values_of_rows(seed, n, k, levels):
    x, k = drawn(seed, 2, 5, n, levels=levels), min(k, n)
    found = ops.smallest(x, n, k).sort(-1).values
    assert np.array_equal(found.numpy(), np.sort(x.numpy(), -1)[..., :k])


@pytest.mark.parametrize(("n", "k"), [(196, 5), (197, 5), (300, 1), (577, 20)])
def test_the_smallest_values_of_long_rows(n, k):
    for levels in (None, 4, 100):
        x = drawn(n + k, 1, 300, n, levels=levels)
        assert np.array_equal(ops.smallest(x, n, k).sort(-1).values.numpy(), np.sort(x.numpy(), -1)[..., :k])


@given(
    st.integers(0, 10_000),
    st.integers(2, 24),
    st.sampled_from([2, 5, 1000]),
    st.sampled_from([1, 3, 256]),
    st.data(),
)
def test_the_nearest_centre_and_the_first_of_equals(seed, n, levels, rows, data):
    distance, keep = symmetric(seed, n, levels), data.draw(st.integers(1, n))
    center = torch.stack(
        [torch.from_numpy(np.random.default_rng(seed + b).permutation(n)[:keep].copy()) for b in range(2)]
    )
    before, ops.ROWS = ops.ROWS, rows  # in slices of any size
    try:
        found = ops.nearest_center(distance, center)
    finally:
        ops.ROWS = before
    for b in range(2):
        want = [min(range(keep), key=lambda k: (distance[b, i, center[b, k]].item(), k)) for i in range(n)]
        assert found[b].tolist() == want


@given(st.integers(0, 10_000), st.integers(1, 24), st.sampled_from([1, 7, 256]))
def test_the_nearest_of_lower_rank(seed, n, rows):
    distance = symmetric(seed, n, 50)
    rank = torch.stack(
        [torch.from_numpy(np.random.default_rng(seed + b).permutation(n)).float() for b in range(2)]
    )
    before, ops.ROWS = ops.ROWS, rows
    try:
        found = ops.nearest_before(distance, rank)
    finally:
        ops.ROWS = before
    for b in range(2):
        want = [
            min((distance[b, i, j].item() for j in range(n) if rank[b, j] < rank[b, i]), default=np.inf)
            for i in range(n)
        ]
        assert found[b].tolist() == want


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 9), st.sampled_from([2, 256]))
def test_the_best_match_and_the_first_of_equals(seed, n, m, rows):
    a, b = drawn(seed, 2, n, 3, levels=3), drawn(seed + 1, 2, m, 3, levels=3)
    before, ops.ROWS = ops.ROWS, rows
    try:
        value, index = ops.best_match(a, b)
    finally:
        ops.ROWS = before
    product = np.einsum("bic,bjc->bij", a.numpy(), b.numpy())
    assert np.array_equal(value.numpy(), product.max(-1))
    assert np.array_equal(index.numpy(), product.argmax(-1))


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 9), st.sampled_from([1, 4]), st.booleans())
def test_sums_over_groups_of_which_some_are_empty(seed, n, m, channels, weighted):
    x = drawn(seed, 2, n, channels).double()
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, m, (2, n)))
    weight = drawn(seed + 1, 2, n).double() if weighted else None
    want = np.zeros((2, m, channels))
    for b in range(2):
        for i in range(n):
            want[b, label[b, i]] += x[b, i].numpy() * (1.0 if weight is None else weight[b, i].item())
    np.testing.assert_allclose(sum_groups(x, label, m, weight).numpy(), want, atol=1e-12)
    counts = [np.bincount(label[b].numpy(), minlength=m).tolist() for b in range(2)]
    assert count_groups(label, m).tolist() == counts


def test_sums_over_groups_pass_gradients():
    x, weight = drawn(0, 2, 7, 3).double().requires_grad_(), drawn(1, 2, 7).double().requires_grad_()
    label = torch.tensor([[0, 1, 1, 3, 0, 0, 1], [2, 2, 2, 2, 2, 2, 0]])
    assert torch.autograd.gradcheck(lambda x, weight: sum_groups(x, label, 4, weight), (x, weight))
    assert torch.autograd.gradcheck(lambda x: sum_groups(x, label, 4), (x,))


def test_rows_of_a_slice():
    x = drawn(0, 2, 9, 5)[:, 2:]
    index = torch.tensor([[6, 0, 0], [3, 1, 5]])
    assert torch.equal(take_rows(x, index), torch.stack([x[b, index[b]] for b in range(2)]))


@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans(), st.sampled_from([2, 256]))
def test_attention_equals_the_explicit_map(seed, n, biased, rows):
    q, k = drawn(seed, 2, 3, n, 4), drawn(seed + 1, 2, 3, n, 4)
    bias = drawn(seed + 2, 2, 1, 1, n) if biased else None
    scores = np.einsum("bhid,bhjd->bhij", q.numpy(), k.numpy()) / 2 + (bias.numpy() if biased else 0)
    full = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    before, ops.ROWS = ops.ROWS, rows
    try:
        received = ops.received_attention(q, k, 0.5, bias)
    finally:
        ops.ROWS = before
    np.testing.assert_allclose(received.numpy(), full.sum((1, 2)), atol=1e-4)
    row = ops.row_attention(q[:, :, :1] / 2, k, bias)
    np.testing.assert_allclose(row.numpy(), full[:, :, 0].mean(1), atol=1e-5)
    np.testing.assert_allclose(ops.head_mean(k).numpy(), k.numpy().mean(1), atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 8])
def test_k_means_is_that_of_scikit_learn(iterations):
    points = drawn(0, 400, 5)
    torch.manual_seed(1)
    start = points[torch.randperm(400)[:7]]
    torch.manual_seed(1)
    centers = ops.kmeans(points, 7, iterations)
    theirs = KMeans(7, init=start.numpy(), n_init=1, max_iter=iterations, tol=0).fit(points.numpy())
    np.testing.assert_allclose(centers.numpy(), theirs.cluster_centers_, atol=1e-4)
    twice = torch.cat([points[:1].expand(9, -1), points[1:3]])  # fewer different points than centres
    assert ops.kmeans(twice, 10).isfinite().all()


@given(st.integers(0, 10_000), st.sampled_from([1, 20, 26, 40]))
def test_distances_equal_the_definition(seed, n):
    x = drawn(seed, 2, n, 5)
    x[:, -1] = x[:, 0]
    distance = ops.pairwise_distance(x)
    want = np.sqrt(np.square(x.numpy()[:, :, None] - x.numpy()[:, None]).sum(-1))
    np.testing.assert_allclose(distance.numpy(), want, atol=2e-3)
    assert (distance[:, 0, -1] == 0).all()
    assert torch.equal(distance, distance.mT)
