"""ToFu against loops over the whole sequence: ToMe's matching, then pruning or MLERP."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.methods.tofu import ToFu
from tokred.testing import make_view, tiny_vit


def outputs(keys, prefix, removed):
    """The groups of one image in their order, as lists of patches; the token that stays comes first."""
    n = len(keys)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    a, b = ([i for i in range(n) if (prefix + i) % 2 == side] for side in (0, 1))
    best = {i: max(b, key=lambda j: unit[i] @ unit[j]) for i in a}
    sources = sorted(a, key=lambda i: -(unit[i] @ unit[best[i]]))[:removed]
    groups = {j: [j, *(i for i in sources if best[i] == j)] for j in b}
    return [[i] for i in a if i not in sources] + list(groups.values())


def mlerp(tokens):
    mean = tokens.mean(0)
    return mean / np.linalg.norm(mean) * np.linalg.norm(tokens, axis=1).max()


@given(st.integers(2, 20), st.sampled_from([0, 1, 2, 5]), st.integers(1, 12), st.integers(0, 1000), st.data())
def test_oracle(n, prefix, layer, seed, data):
    removed = data.draw(st.integers(1, n // 2))
    view = make_view(n=n, prefix=prefix, seed=seed, layer=layer)
    decision = ToFu(n, n - removed, 48, 3)(view)
    pooled, sizes = decision.pool(view.x), decision.sizes(view.size)
    for image in range(3):
        x, size = view.x[image].double().numpy(), view.size[image].numpy()
        groups = outputs(view.key_metric[image].double().numpy(), prefix, removed)
        if layer <= 6:
            assert torch.equal(pooled[image], view.x[image, [group[0] for group in groups]])
            held = [[group[0]] for group in groups]
        else:
            want = [mlerp(x[group]) for group in groups]
            np.testing.assert_allclose(pooled[image].numpy(), want, atol=1e-5)
            held = groups
        np.testing.assert_allclose(sizes[image].numpy(), [size[group].sum() for group in held])


def test_merged_tokens_have_the_largest_norm_and_single_ones_are_untouched():
    view = make_view(n=12, layer=12)
    decision = ToFu(12, 8, 48, 3)(view)
    label, pooled = decision.labels()[0], decision.pool(view.x)[0]
    for slot in range(8):
        members = view.x[0, label == slot]
        torch.testing.assert_close(pooled[slot].norm(), members.norm(dim=1).max())
        if len(members) == 1:
            assert torch.equal(pooled[slot], members[0])


@pytest.mark.parametrize(("prune", "pruned"), [(0.0, 0), (0.5, 2), (0.7, 2), (1.0, 4)])
def test_the_first_layers_prune(prune, pruned, images):
    model = ReducedViT(tiny_vit(), Plan("tofu", (1, 2, 3, 4), (31, 26, 21, 16), {"prune": prune}))
    with torch.no_grad():
        state = model.run(images)
    drops = [bool((reduction.labels() < 0).any()) for reduction in state.reductions]
    assert drops == [True] * pruned + [False] * (4 - pruned)
    assert (state.size.sum(1) == 36 - 5 * pruned).all() or pruned > 1  # dropped tokens may hold several


def test_opposite_tokens_are_no_nan():
    view = make_view(n=4, layer=12)
    view.x[:, 1::2] = -view.x[:, ::2]
    assert ToFu(4, 2, 48, 3)(view).pool(view.x).isfinite().all()


def test_the_share_of_pruning_layers_is_a_fraction():
    with pytest.raises(TokredError, match=r"tofu.prune is a fraction of the layers, from 0 to 1, got 6"):
        ToFu(12, 8, 48, 3, prune=6.0)
