"""CrossGET's matching against loops over all pairs."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.methods.crossget import CrossGET
from tokred.testing import make_view


def groups(keys, removed):
    """Where every token of one image goes: itself, or the token that it joins."""
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    n = len(unit)
    best = [max(unit[i] @ unit[j] for j in range(n) if j != i) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-best[i], i))
    match = {
        i: max((unit[i] @ unit[j] for j in order[rank + 1 :]), default=-np.inf)
        for rank, i in enumerate(order)
    }
    sources = sorted(range(n), key=lambda i: (-match[i], i))[:removed]
    others = [j for j in range(n) if j not in sources]
    return [max(others, key=lambda j: (unit[i] @ unit[j], -j)) if i in sources else i for i in range(n)]


@given(st.integers(2, 20), st.integers(0, 1000), st.data())
def test_oracle(n, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, seed=seed)
    decision = CrossGET(n, n - removed, 48, 3)(view)
    for b in range(3):
        target = groups(view.attention.k[b, :, 1:].mean(0).double().numpy(), removed)
        stays = sorted(set(target))
        assert decision.labels()[b].tolist() == [stays.index(i) for i in target]
        size, x = view.size[b].double().numpy(), view.x[b].double().numpy()
        for slot, i in enumerate(stays):
            member = np.array(target) == i
            want = size[member] @ x[member] / size[member].sum()
            np.testing.assert_allclose(decision.pool(view.x)[b, slot].numpy(), want, atol=1e-5)


def test_a_token_joins_its_twin_wherever_it_stands():
    """ToMe's halves separate patches 1 and 3 of a sequence with one prefix token; here they meet."""
    view = make_view(n=8)
    view.attention.k[:, :, 4] = view.attention.k[:, :, 2]
    label = CrossGET(8, 7, 48, 3)(view).labels()
    assert (label[:, 1] == label[:, 3]).all()


def test_of_equal_tokens_the_last_ones_stay():
    view = make_view(n=5)
    view.attention.k = torch.ones_like(view.attention.k)
    assert CrossGET(5, 3, 48, 3)(view).labels()[0].tolist() == [0, 0, 0, 1, 2]
