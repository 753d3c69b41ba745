"""MCTF against loops over the whole sequence, prefix included, with criteria normalised as in the paper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokred.errors import TokredError
from tokred.methods.mctf import MCTF
from tokred.testing import make_view


def received(view, image):
    """Attention that every token of one image receives, mean over heads and queries."""
    q, k = (getattr(view.attention, name)[image].double().numpy() for name in "qk")
    total = 0
    for head in range(len(q)):
        scores = np.exp(q[head] @ k[head].T * view.attention.scale)
        total = total + (scores / scores.sum(1, keepdims=True)).mean(0)
    return (total / len(q))[view.num_prefix :]


def outputs(x, attention, size, prefix, removed):
    """The groups of one image in their order, as lists of patch indices."""
    n = len(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rare, small = (1 / attention) / (1 / attention).max(), (1 / size) / (1 / size).max()

    def affinity(i, j):
        alike = (1 + unit[i] @ unit[j]) / 2
        return alike * (rare[i] * rare[j]) ** (1 / 20) * (small[i] * small[j]) ** (1 / 40)

    a, b = ([i for i in range(n) if (prefix + i) % 2 == side] for side in (0, 1))
    best = {i: max(b, key=lambda j: affinity(i, j)) for i in a}
    forth = sorted(a, key=lambda i: -affinity(i, best[i]))[: removed // 2]
    groups = {i: [i] for i in range(n)}
    for i in forth:
        groups[best[i]] += groups.pop(i)
    left = [i for i in a if i not in forth]
    back = {j: max(left, key=lambda i: affinity(i, j)) for j in b}
    ranked = sorted(b, key=lambda j: -affinity(back[j], j))
    for j in ranked[: removed - removed // 2]:
        groups[back[j]] += groups.pop(j)
    return [groups[i] for i in left] + [groups[j] for j in ranked[removed - removed // 2 :]]


@given(st.integers(2, 20), st.sampled_from([0, 1, 2, 5]), st.integers(0, 1000), st.data())
def test_oracle(n, prefix, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, prefix=prefix, seed=seed)
    decision = MCTF(n, n - removed, 48, 3)(view)
    for image in range(3):
        x, size = view.x[image].double().numpy(), view.size[image].double().numpy()
        attention = received(view, image)
        groups = outputs(x, attention, size, prefix, removed)
        label = decision.labels()[image].numpy()
        assert [sorted(group) for group in groups] == [
            np.flatnonzero(label == slot).tolist() for slot in range(n - removed)
        ]
        weight = attention * size / size.max()
        want = [weight[group] @ x[group] / weight[group].sum() for group in groups]
        np.testing.assert_allclose(decision.pool(view.x)[image].numpy(), want, atol=1e-5)


def test_a_source_may_follow_its_destination():
    """With chains, a group can have tokens of both sets beside the one that they end in."""
    view = make_view(n=4, prefix=0)
    view.x[:] = view.x[:, :1]  # all alike: attention and size decide
    label = MCTF(4, 2, 48, 3)(view).labels()
    assert sorted(label[0].bincount().tolist()) in ([1, 3], [2, 2])


def test_temperatures_are_positive():
    with pytest.raises(TokredError, match=r"mctf.size is a temperature and must be positive, got 0"):
        MCTF(12, 10, 48, 3, size=0.0)
