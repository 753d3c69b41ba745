"""Evo-ViT's slow tokens and their representative against loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.methods.evovit import EvoViT
from tokred.testing import make_view, tiny_vit


def attention_of_cls(view, image):
    """Attention that CLS pays to the patches of one image, mean over heads."""
    q, k = (getattr(view.attention, name)[image].double().numpy() for name in "qk")
    rows = [np.exp(k[head] @ q[head, 0] * view.attention.scale) for head in range(len(q))]
    return np.mean([row / row.sum() for row in rows], axis=0)[view.num_prefix :]


def outputs(x, attention, keep):
    """One image: slow tokens by attention, then the weighted mean of the others."""
    order = sorted(range(len(x)), key=lambda i: -attention[i])
    fast = order[keep - 1 :]
    share = attention[fast] / attention[fast].sum()
    return np.stack([*(x[i] for i in order[: keep - 1]), share @ x[fast]])


@given(st.integers(2, 20), st.sampled_from([1, 2, 5]), st.integers(0, 1000), st.data())
def test_oracle(n, prefix, seed, data):
    keep = data.draw(st.integers(1, n - 1))
    view = make_view(n=n, prefix=prefix, seed=seed)
    decision = EvoViT(n, keep, 48, 3)(view)
    for image in range(3):
        attention = attention_of_cls(view, image)
        want = outputs(view.x[image].double().numpy(), attention, keep)
        np.testing.assert_allclose(decision.pool(view.x)[image].numpy(), want, atol=1e-5)
        waiting = decision.labels()[image] == keep - 1
        assert decision.sizes(view.size)[image, -1] == view.size[image, waiting].sum()


def test_a_representative_is_never_slow_and_takes_in_those_that_fall_behind(images):
    model = ReducedViT(tiny_vit(), Plan("evovit", (2, 3, 4), (20, 12, 2)))
    with torch.no_grad():
        state = model.run(images)
    for reduction, keep in zip(state.reductions[1:], (12, 2), strict=True):
        assert (reduction.labels()[:, -1] == keep - 1).all()
    assert (state.size[:, 0] == 1).all()  # a slow token stands for one patch to the end
    assert (state.size[:, 1] == 35).all()


def test_attention_is_that_of_the_layer_before(images):
    model = ReducedViT(tiny_vit(), Plan("evovit", (3,), (9,)))
    with torch.no_grad():
        before = model.advance(model.embed(images), stop=(3, "pre"))
        view = model.stages["pre3"].view(before)
        q, k, _ = (
            model.backbone.blocks[1]
            .attn.qkv(model.backbone.blocks[1].norm1(model.advance(model.embed(images), stop=(2, "pre")).x))
            .reshape(3, 37, 3, 3, 16)
            .permute(2, 0, 3, 1, 4)
        )
        scores = (q[:, :, :1] @ k.mT * 16**-0.5).softmax(-1).mean(1)[:, 0, 1:]
        torch.testing.assert_close(view.cls_attention, scores)
        kept = model.run(images).reductions[0].labels() < 8
    assert torch.equal(kept, scores >= scores.sort(dim=1, descending=True).values[:, 7:8])
