"""DiffRate against loops over tokens in order of CLS attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokred
from tokred.core.registry import get
from tokred.errors import TokredError
from tokred.methods.diffrate import DiffRate
from tokred.models import zoo
from tokred.testing import make_view


def attended(view, image):
    """Attention of the CLS token to the patches of one image, mean over heads."""
    q, k = (getattr(view.attention, name)[image].double().numpy() for name in "qk")
    rows = [np.exp(q[head, 0] @ k[head].T * view.attention.scale) for head in range(len(q))]
    return np.mean([row / row.sum() for row in rows], axis=0)[view.num_prefix :]


def outcome(x, attention, size, pruned, merged):
    """The groups of one image in their order, as lists of patch indices, and their sizes."""
    order = sorted(range(len(x)), key=lambda i: -attention[i])
    left = order[: len(order) - pruned]
    kept, sources = left[: len(left) - merged], left[len(left) - merged :]
    groups, sizes = {i: [i] for i in kept}, {i: size[i] for i in kept}
    for i in sources:
        cosine = {j: x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in kept}
        target = max(cosine, key=cosine.get)
        groups[target].append(i)
        sizes[target] += size[i] * max(cosine[target], 0)
    return [groups[i] for i in kept], [sizes[i] for i in kept]


@given(st.integers(2, 20), st.sampled_from([1, 2, 5]), st.integers(0, 1000), st.floats(0, 1), st.data())
def test_oracle(n, prefix, seed, share, data):
    removed = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, prefix=prefix, seed=seed)
    decision = DiffRate(n, n - removed, 48, 3, pruned=share)(view)
    pruned = int(removed * share + 0.5)
    for image in range(3):
        x, size = view.x[image].double().numpy(), view.size[image].double().numpy()
        groups, sizes = outcome(x, attended(view, image), size, pruned, removed - pruned)
        label = decision.labels()[image].numpy()
        assert [sorted(group) for group in groups] == [
            np.flatnonzero(label == slot).tolist() for slot in range(n - removed)
        ]
        assert (label == -1).sum() == pruned
        np.testing.assert_allclose(decision.sizes(view.size)[image].numpy(), sizes, rtol=1e-5)
        want = [x[group].mean(0) for group in groups]
        np.testing.assert_allclose(decision.pool(view.x)[image].numpy(), want, atol=1e-5)


def test_opposite_tokens_add_no_size():
    view = make_view(n=2)
    view.x[:, 1] = -view.x[:, 0]
    decision = DiffRate(2, 1, 48, 3, pruned=0.0)(view)
    assert (decision.labels() == 0).all()
    kept = view.cls_attention.argmax(1)
    assert decision.sizes(view.size).flatten().tolist() == view.size.gather(1, kept[:, None])[:, 0].tolist()


@pytest.mark.slow
def test_the_authors_schedule_runs():
    plan = tokred.reduce(zoo.outline("deit_t"), "diffrate", schedule="diffrate_t_0.9").plan
    assert plan.stages == get("diffrate").stages
    assert plan.tokens == (195, 193, 187, 171, 146, 128, 114, 106, 102, 95, 2)


def test_the_share_is_a_fraction():
    with pytest.raises(TokredError, match=r"diffrate.pruned is a fraction between 0 and 1, got 1.5"):
        DiffRate(12, 10, 48, 3, pruned=1.5)
