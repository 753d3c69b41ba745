"""Checks of whole models that a method reduces."""

from __future__ import annotations

import copy

import torch

from tokred.core.backbone import num_heads, num_patches
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import compose, unmerge
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.models.residual import scale_residual
from tokred.testing.battery import check, expect, reachable, softened
from tokred.testing.samples import DIM, HEADS, images, reduced, tiny_plan, tiny_vit


@check
def check_empty_plan(cls: type[Reducer]) -> None:
    """Keeping every token gives the dense model's logits, bit for bit."""
    if cls.adaptive():
        return  # how many stay depends on the image
    model, x = tiny_vit(), images()
    plan = Plan(cls, (2, 3), (num_patches(model),) * 2)
    with torch.no_grad():
        expect(torch.equal(ReducedViT(model, plan)(x), model(x)), "An empty plan changes the logits.")


@check
def check_models(cls: type[Reducer]) -> None:
    """The method runs with 1, 2 and 5 prefix tokens, an odd grid, and no CLS token unless it needs one."""
    for options in (
        {},
        {"reg_tokens": 1},
        {"reg_tokens": 4},
        {"global_pool": "avg"},
        {"init_values": 0.1, "qk_norm": True},
        {"img_size": 56},
    ):
        model = tiny_vit(**options)
        wrapped = reduced(cls, model)
        with torch.no_grad():
            state = wrapped.run(images(side=model.patch_embed.img_size[0]))
        tokens = tiny_plan(cls, model).tokens[-1]
        if cls.adaptive():
            tokens = int(state.counts[:, -1].max())
        count = state.x.shape[1]
        expect(count == model.num_prefix_tokens + tokens, f"{options} ends with {count} tokens.")
        expect(wrapped.logits(state).isfinite().all(), f"{options} gives logits that are no numbers.")
        source = compose(state.reductions)
        agree = state.size is not None and torch.allclose(source.sum(2), state.size, atol=1e-3)
        soft = any(map(softened, state.reductions))
        expect(agree or soft, "The source map does not agree with the sizes.")
        patches = unmerge(state.reductions, state.x[:, -tokens:])
        expect(patches.shape[1] == num_patches(model), "unmerge over stages lost patches.")
    model = tiny_vit(class_token=False, global_pool="avg")
    probe = cls(16, reachable(cls, 16)[0], DIM, HEADS)
    try:
        with torch.no_grad():
            logits = reduced(cls, model)(images())
        expect(logits.isfinite().all(), "A model without CLS token gives logits that are no numbers.")
    except TokredError:
        expect(probe.needs_cls, "The method is refused without a CLS token but does not state needs_cls.")
    else:
        expect(not probe.needs_cls, "The method states needs_cls but runs without one.")


@check
def check_model_batch(cls: type[Reducer]) -> None:
    """Whole models: a batch of 1 equals its slice, and the backbone is left alone."""
    model = tiny_vit()
    keys = list(model.state_dict())
    wrapped, x = reduced(cls, model), images(3)
    with torch.no_grad():
        whole, alone = wrapped(x), wrapped(x[1:2])
        expect(torch.allclose(whole[1:2], alone, atol=1e-5), "A batch of 1 differs from its slice.")
    expect(list(model.state_dict()) == keys and num_heads(model) == HEADS, "The backbone was changed.")


def residual_invariant(cls: type[Reducer], factors: tuple[float, ...] = (1 / 8, 8.0)) -> bool:
    """Whether multiplying the residual stream of a model leaves the reduced model's logits as they are.

    A model computes the same at any scale of its residual stream, so what a method makes of it is a property
    of the weights only if the method does not look at that scale. No method has to be invariant.

    Args:
        cls: The method.
        factors: What the residual stream is multiplied by.
    """
    logits = []
    for factor in (1.0, *factors):
        model = copy.deepcopy(tiny_vit())
        scale_residual(model, factor)
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.eps *= factor**2  # else the model itself would not be invariant
        with torch.no_grad():
            logits.append(reduced(cls, model)(images(8)))
    return all(torch.allclose(logits[0], other, atol=1e-2) for other in logits[1:])
