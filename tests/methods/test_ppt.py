"""PPT against loops: the variance decides which of two decisions an image gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokred.errors import TokredError
from tokred.methods.ppt import PPT
from tokred.testing import make_view


def shares(view, image):
    """Importance of the patches of one image: CLS attention times the norm of the values, as fractions."""
    q, k, v = (getattr(view.attention, name)[image].double().numpy() for name in "qkv")
    attention = 0
    for head in range(len(q)):
        scores = np.exp(q[head, 0] @ k[head].T * view.attention.scale)
        attention = attention + scores / scores.sum()
    values = np.concatenate(list(v), axis=1)  # heads side by side
    importance = (attention * np.linalg.norm(values, axis=1))[view.num_prefix :]
    return importance / importance.sum()


def pruned(share, removed):
    return [[i] for i in sorted(range(len(share)), key=lambda i: -share[i])[: len(share) - removed]]


def merged(view, image, removed):
    """ToMe's groups, of patch indices."""
    keys = view.attention.k[image].double().numpy().mean(0)[view.num_prefix :]
    keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    a, b = ([i for i in range(len(keys)) if (view.num_prefix + i) % 2 == side] for side in (0, 1))
    best = {i: max(b, key=lambda j: keys[i] @ keys[j]) for i in a}
    sources = sorted(a, key=lambda i: -(keys[i] @ keys[best[i]]))[:removed]
    return [[i] for i in a if i not in sources] + [[j] + [i for i in sources if best[i] == j] for j in b]


@given(st.integers(2, 20), st.sampled_from([1, 2, 5]), st.integers(0, 1000), st.data())
def test_oracle(n, prefix, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, prefix=prefix, seed=seed)
    share = [shares(view, image) for image in range(3)]
    variance = [np.var(one, ddof=1) for one in share]
    middle = np.mean(np.sort(variance)[:2])  # one image is merged, two are pruned
    patches = view.grid[0] * view.grid[1]
    decision = PPT(n, n - removed, 48, 3, variance=middle * (patches / 196) ** 2)(view)
    for image in range(3):
        flat = variance[image] < middle
        groups = merged(view, image, removed) if flat else pruned(share[image], removed)
        label = decision.labels()[image].numpy()
        assert [sorted(group) for group in groups] == [
            np.flatnonzero(label == slot).tolist() for slot in range(n - removed)
        ]
        assert (label == -1).sum() == (0 if flat else removed)
        x, size = view.x[image].double().numpy(), view.size[image].double().numpy()
        want = [size[group] @ x[group] / size[group].sum() for group in groups]
        np.testing.assert_allclose(decision.pool(view.x)[image].numpy(), want, atol=1e-5)


def test_a_variance_of_zero_prunes_everywhere():
    view = make_view()
    assert (PPT(16, 12, 48, 3, variance=0.0)(view).labels() == -1).sum(1).tolist() == [4, 4, 4]
    assert (PPT(16, 12, 48, 3, variance=1e9)(view).labels() == -1).sum(1).tolist() == [0, 0, 0]
    with pytest.raises(TokredError, match=r"ppt.variance must not be negative, got -1"):
        PPT(16, 12, 48, 3, variance=-1.0)
