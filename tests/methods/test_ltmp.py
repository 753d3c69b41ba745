"""LTMP against loops over one image: matches above one threshold, then groups above another."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.methods.ltmp import LTMP
from tokred.testing import make_view, tiny_vit


def importance(view, image):
    """Attention that every patch of one image receives, mean over heads and queries, times all tokens."""
    q, k = (getattr(view.attention, name)[image].double().numpy() for name in "qk")
    total = 0
    for head in range(len(q)):
        scores = np.exp(q[head] @ k[head].T * view.attention.scale)
        total = total + (scores / scores.sum(1, keepdims=True)).mean(0)
    return (total / len(q) * len(q[0]))[view.num_prefix :]


def outputs(view, image, cosine, share):
    """The groups of one image in their order, as lists of patch indices."""
    keys = view.attention.k[image].double().numpy().mean(0)[view.num_prefix :]
    keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    n, received = len(keys), importance(view, image)
    a, b = ([i for i in range(n) if (view.num_prefix + i) % 2 == side] for side in (0, 1))
    groups = {i: [i] for i in a + b}
    for i in a if b else []:
        j = max(b, key=lambda j: keys[i] @ keys[j])
        assume(abs(keys[i] @ keys[j] - cosine) > 1e-5)
        if keys[i] @ keys[j] > cosine:
            groups[j] += groups.pop(i)
    value = {i: max(received[group]) for i, group in groups.items()}
    assume(min(abs(one - share) for one in value.values()) > 1e-5)
    best = max(value, key=value.get)
    return [sorted(group) for i, group in groups.items() if value[i] > share or i == best]


@given(
    st.integers(1, 20), st.sampled_from([0, 1, 2, 5]), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 3)
)
def test_oracle(n, prefix, seed, threshold, prune):
    view, reducer = make_view(n=n, prefix=prefix, seed=seed), LTMP(n, n, 48, 3, prune=prune)
    reducer.threshold = threshold
    decision = reducer(view)
    for image in range(3):
        groups = outputs(view, image, np.cos(threshold * np.pi / 2), prune * threshold)
        label = decision.labels()[image].numpy()
        assert groups == [np.flatnonzero(label == slot).tolist() for slot in range(label.max() + 1)]
        x, size = view.x[image].double().numpy(), view.size[image].double().numpy()
        want = [size[group] @ x[group] / size[group].sum() for group in groups]
        np.testing.assert_allclose(decision.pool(view.x)[image, : len(want)].numpy(), want, atol=1e-5)


@torch.no_grad()
def test_from_nothing_to_nearly_all_of_the_tokens(images):
    counts = []
    for threshold in (0.0, 0.3, 0.6, 1.0):
        plan = Plan("ltmp", (2, 3), (36, 36), {}, threshold)
        counts.append(ReducedViT(tiny_vit(), plan).run(images).counts.float().mean(0).tolist())
    assert counts[0] == [36, 36]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1][-1] < 9
    whole, none = tiny_vit()(images), ReducedViT(tiny_vit(), Plan("ltmp", (2, 3), (36, 36), {}, 0.0))(images)
    torch.testing.assert_close(none, whole)


def test_equal_keys_do_not_merge_at_a_threshold_of_zero():
    view, reducer = make_view(), LTMP(16, 16, 48, 3)
    view.attention.k[:] = view.attention.k[:, :, :1]
    reducer.threshold = 0.0
    assert reducer(view).labels().amax(1).tolist() == [15, 15, 15]
    reducer.threshold = 0.05
    assert reducer(view).labels().amax(1).tolist() == [7, 7, 7]


def test_pruning_alone_is_not_negative():
    with pytest.raises(TokredError, match=r"ltmp.prune must not be negative, got -1"):
        LTMP(16, 16, 48, 3, prune=-1.0)
