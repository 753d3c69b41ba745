"""PiToMe against loops over tokens in order of energy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.errors import TokredError
from tokred.methods.pitome import PiToMe
from tokred.testing import make_view


def groups(keys, removed, margin, protect):
    """The tokens of one image in groups, as sorted tuples."""
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    n = len(unit)

    def elu(t):
        return t if t > 0 else math.exp(t) - 1

    energy = [sum(elu(unit[i] @ unit[j] - margin) for j in range(n)) / n for i in range(n)]
    order = sorted(range(n), key=lambda i: (-energy[i], i))
    if protect:
        order = order[: 2 * removed]
    a, b = order[0::2], order[1::2]
    best = [max((unit[i] @ unit[j], -k) for k, j in enumerate(b)) for i in a]
    merged = sorted(range(len(a)), key=lambda k: (-best[k][0], k))[:removed]
    joined = {i: [i] for i in range(n)}
    for k in merged:
        joined[b[-best[k][1]]].append(a[k])
        del joined[a[k]]
    return sorted(tuple(sorted(members)) for members in joined.values())


def decided(label):
    return sorted(tuple(np.flatnonzero(label == slot)) for slot in range(label.max() + 1))


@given(
    st.integers(2, 20),
    st.integers(1, 12),
    st.sampled_from(["sorted-first", "protect-first", "sorted", "protect"]),
    st.integers(0, 1000),
    st.data(),
)
def test_oracle(n, layer, layers, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, seed=seed, layer=layer)
    decision = PiToMe(n, n - removed, 48, 3, layers=layers)(view)
    halves = {"sorted-first": layer > 6, "protect-first": layer <= 6, "sorted": False, "protect": True}
    for b in range(3):
        keys = view.attention.k[b, :, 1:].mean(0).double().numpy()
        want = groups(keys, removed, 0.75 - 0.75 * (layer - 1) / 12, halves[layers])
        assert decided(decision.labels()[b].numpy()) == want
    size = view.size.unsqueeze(-1)
    for slot in range(n - removed):
        member = (decision.labels() == slot).unsqueeze(-1) * size
        want = (member * view.x).sum(1) / member.sum(1)
        torch.testing.assert_close(decision.pool(view.x)[:, slot], want, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 100), st.sampled_from(["sorted", "protect"]))
def test_the_order_of_the_tokens_does_not_matter(seed, layers):
    view, moved = make_view(n=12, seed=seed), make_view(n=12, seed=seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved.attention.k[:, :, 1:] = moved.attention.k[:, :, 1:][:, :, order]
    label = PiToMe(12, 7, 48, 3, layers=layers)(view).labels()[0, order].numpy()
    assert decided(label) == sorted(
        tuple(members) for members in decided(PiToMe(12, 7, 48, 3, layers=layers)(moved).labels()[0].numpy())
    )


def test_protected_tokens_stay_as_they_are_and_twins_have_the_highest_energy():
    view = make_view(n=12, layer=12)
    view.attention.k[:, :, 5:9] = view.attention.k[:, :, 4:5]  # patches 3 to 7 are alike
    pooled = PiToMe(12, 10, 48, 3)(view).pool(view.x)
    label = PiToMe(12, 10, 48, 3)(view).labels()[0].tolist()
    alone = [i for i in range(12) if label.count(label[i]) == 1]
    assert {i for i in range(12) if i not in alone} <= {3, 4, 5, 6, 7}
    for i in alone:
        assert torch.equal(pooled[0, label[i]], view.x[0, i])


def test_a_margin_beyond_a_cosine_is_refused():
    with pytest.raises(TokredError, match=r"pitome.margin is a cosine, from -1 to 1, got 2"):
        PiToMe(12, 10, 48, 3, margin=2.0)
