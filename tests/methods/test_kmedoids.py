"""K-Medoids against loops, exhaustive search and its own objective."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tokred.methods.kmedoids import KMedoids
from tokred.testing import make_view


def weights(view):
    """Column sums of the explicit attention map, over heads and all queries, [B, n]."""
    a = view.attention
    scores = (a.q.double() @ a.k.double().mT * a.scale).softmax(-1)
    return scores.sum((1, 2))[:, view.num_prefix :].numpy()


def assign(distance, centers):
    return np.array(
        [min(range(len(centers)), key=lambda k: (distance[i, centers[k]], k)) for i in range(len(distance))]
    )


def oracle(x, w, keep, iterations=3, update="textbook"):
    distance = cdist(x, x)
    n = len(x)
    centers = sorted(range(n), key=lambda i: (-w[i], i))[:keep]
    for _ in range(iterations):
        label = assign(distance, centers)
        new = []
        for k in range(keep):
            members = [i for i in range(n) if label[i] == k]
            if update == "textbook":
                costs = [(sum(w[i] * distance[i, j] for i in members), j) for j in members]
                new.append(min(costs)[1] if costs else centers[k])
            else:
                costs = [(w[j] * distance[:, j].sum(), j) for j in members]
                new.append(min(costs)[1] if costs else 0)
        centers = new
    return centers, assign(distance, centers)


@given(st.integers(3, 16), st.integers(0, 1000), st.sampled_from(["textbook", "published"]), st.data())
def test_oracle(n, seed, update, data):
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, seed=seed)
    decision = KMedoids(n, keep, 48, 3, update=update)(view)
    w = weights(view)
    for b in range(3):
        centers, label = oracle(view.x[b].double().numpy(), w[b], keep, update=update)
        assert decision.index[b].tolist() == centers
        assert decision.label[b].tolist() == label.tolist()


@pytest.mark.parametrize("update", ["textbook", "published"])
def test_oracle_on_a_real_number_of_tokens(update):
    view = make_view(n=60, seed=1)
    decision = KMedoids(60, 25, 48, 3, update=update)(view)
    centers, label = oracle(view.x[0].double().numpy(), weights(view)[0], 25, update=update)
    assert decision.index[0].tolist() == centers
    assert decision.label[0].tolist() == label.tolist()


def test_ties_go_to_the_lower_index():
    view = make_view(n=30, x=torch.ones(3, 30, 48))
    view.attention.k.zero_()
    decision = KMedoids(30, 5, 48, 3)(view)
    assert decision.index[0].tolist() == list(range(5))
    assert decision.label[0].tolist() == [0, 1, 2, 3, 4, *[0] * 25]


def test_received_attention_is_the_column_sum_of_the_map():
    for n, prefix in ((10, 1), (300, 2)):  # 300 tokens go through two chunks of queries
        view = make_view(n=n, prefix=prefix)
        np.testing.assert_allclose(view.received_attention.numpy(), weights(view), rtol=1e-4)


@given(st.integers(0, 200))
def test_updates_lower_the_objective_towards_the_optimum(seed):
    n, keep = 9, 3
    view = make_view(n=n, seed=seed)
    w, x = weights(view)[0], view.x[0].double().numpy()
    distance = cdist(x, x)

    def objective(centers):
        label = assign(distance, centers)
        return sum(w[i] * distance[i, centers[label[i]]] for i in range(n))

    values = [objective(KMedoids(n, keep, 48, 3, iterations=k)(view).index[0].tolist()) for k in range(4)]
    assert all(after <= before + 1e-9 for before, after in pairwise(values))
    best = min(objective(list(centers)) for centers in combinations(range(n), keep))
    assert best <= values[-1] + 1e-9 <= 1.5 * best


@pytest.mark.parametrize("output", ["mean", "wmean"])
def test_cluster_means(output):
    view = make_view(n=12)
    medoids = KMedoids(12, 5, 48, 3)(view)
    means = KMedoids(12, 5, 48, 3, output=output)(view)
    assert torch.equal(means.labels(), medoids.labels())
    member = medoids.labels()[0] == 2
    w = (
        torch.from_numpy(weights(view))[0, member].float()
        if output == "wmean"
        else torch.ones(int(member.sum()))
    )
    want = (w[:, None] * view.x[0, member]).sum(0) / w.sum()
    assert torch.allclose(means.pool(view.x)[0, 2], want, atol=1e-5)


def test_well_separated_clusters_are_found():
    rng = torch.Generator().manual_seed(0)
    blobs = 100 * torch.randn(4, 48, generator=rng)
    truth = torch.arange(4).repeat_interleave(5)
    x = (blobs[truth] + 0.1 * torch.randn(20, 48, generator=rng)).expand(3, -1, -1)
    view = make_view(n=20, x=x)
    view.attention.k[:, :, 1:] = -100.0  # attention starts one centre in each blob
    view.attention.q[:] = 1.0
    view.attention.k[:, :, 1 + torch.tensor([0, 6, 12, 18])] = 100.0
    label = KMedoids(20, 4, 48, 3)(view).label[0]
    assert len({(t.item(), lab.item()) for t, lab in zip(truth, label, strict=True)}) == 4


@given(st.integers(3, 24), st.integers(0, 1000), st.sampled_from(["textbook", "published"]), st.data())
def test_oracle_on_tokens_of_which_many_are_equal(n, seed, update, data):
    """Points of a small grid: equal tokens, equal distances, and clusters that lose all members."""
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, seed=seed)
    grid = torch.zeros(3, n, 48)
    grid[..., :2] = torch.randint(0, 3, (3, n, 2), generator=torch.Generator().manual_seed(seed)).float()
    view.x = grid
    decision = KMedoids(n, keep, 48, 3, update=update)(view)
    w = weights(view)
    for b in range(3):
        centers, _ = oracle(view.x[b].double().numpy(), w[b], keep, update=update)
        assert decision.index[b].tolist() == centers
