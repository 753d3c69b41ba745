"""DPC-KNN against scikit-learn's neighbours and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from tokred.methods.dpcknn import DPCKNN
from tokred.testing import make_view


def oracle(x, keep, neighbors=5, scale="published"):
    n = len(x)
    unit = np.sqrt(x.shape[1]) if scale == "published" else np.sqrt((cdist(x, x) ** 2).mean())
    distance = cdist(x, x) / unit
    near, _ = NearestNeighbors(n_neighbors=min(neighbors, n)).fit(x).kneighbors(x)  # itself included
    density = np.exp(-((near / unit) ** 2).mean(1))
    score = np.empty(n)
    for i in range(n):
        denser = [
            distance[i, j]
            for j in range(n)
            if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        score[i] = density[i] * (min(denser) if denser else distance.max())
    centers = sorted(range(n), key=lambda i: (-score[i], i))[:keep]
    label = [min(range(keep), key=lambda k: (distance[i, centers[k]], k)) for i in range(n)]
    for k, center in enumerate(centers):
        label[center] = k
    return np.array(label)


@given(st.integers(3, 24), st.integers(0, 1000), st.sampled_from(["published", "relative"]), st.data())
def test_oracle(n, seed, scale, data):
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, seed=seed)
    decision = DPCKNN(n, keep, 48, 3, scale=scale)(view)
    for b in range(3):
        label = oracle(view.x[b].double().numpy(), keep, scale=scale)
        assert decision.labels()[b].tolist() == label.tolist()
        want = np.stack([view.x[b].numpy()[label == k].mean(0) for k in range(keep)])
        np.testing.assert_allclose(decision.pool(view.x)[b].numpy(), want, atol=1e-5)


@given(st.integers(0, 1000))
def test_moving_and_turning_all_tokens_changes_nothing(seed):
    view = make_view(n=14, seed=seed)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(seed)))[0]
    moved = make_view(n=14, seed=seed, x=view.x @ turn + 1.0)
    assert torch.equal(DPCKNN(14, 6, 48, 3)(moved).labels(), DPCKNN(14, 6, 48, 3)(view).labels())


@pytest.mark.parametrize("n", [60, 197])
def test_twins_among_many_tokens(n):
    """Beyond 25 tokens distances come from inner products; equal tokens must still be at distance 0."""
    view = make_view(n=n, seed=n)
    view.x[:, n // 2 : n // 2 + 8] = view.x[:, :8]
    assert (view.distance[:, torch.arange(8), n // 2 + torch.arange(8)] == 0).all()
    assert torch.equal(view.distance, view.distance.mT)
    decision = DPCKNN(n, n // 3, 48, 3)(view)
    for b in range(3):
        assert decision.labels()[b].tolist() == oracle(view.x[b].double().numpy(), n // 3).tolist()


def test_relative_distances_do_not_know_the_scale_of_the_tokens():
    view, large = make_view(n=40), make_view(n=40)
    large.x = 64 * large.x
    assert torch.equal(
        DPCKNN(40, 12, 48, 3, scale="relative")(large).labels(),
        DPCKNN(40, 12, 48, 3, scale="relative")(view).labels(),
    )
    assert not torch.equal(DPCKNN(40, 12, 48, 3)(large).labels(), DPCKNN(40, 12, 48, 3)(view).labels())


def test_published_noise_changes_nothing_without_ties():
    view = make_view(n=40)
    assert torch.equal(
        DPCKNN(40, 12, 48, 3, ties="noise")(view).labels(), DPCKNN(40, 12, 48, 3)(view).labels()
    )
    noise, index = (
        DPCKNN(40, 12, 48, 3, neighbors=1, ties=ties)(view).labels() for ties in ("noise", "index")
    )
    assert not torch.equal(
        noise, index
    )  # a token alone is its own neighbour, so that all densities are equal


def test_blobs_are_recovered():
    rng = torch.Generator().manual_seed(1)
    truth = torch.arange(5).repeat_interleave(6)
    x = (50 * torch.randn(5, 48, generator=rng)[truth] + 0.1 * torch.randn(30, 48, generator=rng)).expand(
        3, -1, -1
    )
    label = DPCKNN(30, 5, 48, 3)(make_view(n=30, x=x)).labels()[0]
    assert len({(t.item(), lab.item()) for t, lab in zip(truth, label, strict=True)}) == 5


def test_twins_give_every_centre_its_own_cluster():
    view = make_view(n=10, x=torch.ones(3, 10, 48))
    assert set(DPCKNN(10, 4, 48, 3)(view).labels()[0].tolist()) == {0, 1, 2, 3}
