"""Tiny models, views and reducers with fixed random values, on which methods are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from tokred.core.backbone import num_patches
from tokred.core.plan import Plan, uniform_counts
from tokred.core.reducer import Attention, Reducer, View
from tokred.core.reduction import Merge, Reduction
from tokred.core.rng import Rng
from tokred.core.vit import ReducedViT

DIM, HEADS = 48, 3

M = TypeVar("M", bound=nn.Module)


def make_view(
    batch: int = 3,
    n: int = 16,
    prefix: int = 1,
    seed: int = 0,
    *,
    layer: int = 4,
    has_cls: bool = True,
    **kwargs: Any,
) -> View:
    """A random view without near-ties: [batch, n, 48] tokens after `prefix` prefix tokens, 3 heads."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float32)

    q, k, v = (normal(batch, HEADS, prefix + n, DIM // HEADS) for _ in range(3))
    size = torch.randint(1, 4, (batch, n), generator=rng).float()
    view = View(
        x=normal(batch, n, DIM),
        prefix=normal(batch, prefix, DIM),
        layer=layer,
        has_cls=has_cls,
        grid=(-(-n // 4), 4),
        rng=Rng(0, torch.arange(batch)),
        attention=Attention(q, k, v, (DIM // HEADS) ** -0.5),
    )
    view.__dict__.update({"size": size, **kwargs})
    return view


def map_view(view: View, change: Callable[[Tensor], Tensor]) -> View:
    """A view whose tensors have been changed: sliced, cast, moved."""
    a, images = view.attention, view.rng.images
    changed = replace(
        view,
        x=change(view.x),
        prefix=change(view.prefix),
        rng=replace(view.rng, images=None if images is None else change(images)),
        attention=a and replace(a, q=change(a.q), k=change(a.k), v=change(a.v)),
    )
    changed.__dict__["size"] = change(view.size)
    return changed


@lru_cache(maxsize=8)
def tiny_vit(**options: Any) -> Any:
    """A timm ViT of depth 4 and width 48 on 6 x 6 patches, with fixed random weights."""
    defaults = {"img_size": 48, "patch_size": 8, "embed_dim": DIM, "depth": 4, "num_heads": HEADS}
    model = timm.create_model("vit_tiny_patch16_224", **{**defaults, "num_classes": 10, **options}).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.1 * torch.randn(parameter.shape, generator=rng))
    return model


def tiny_plan(cls: type[Reducer], model: Any, stages: tuple[int, ...] = (2, 3)) -> Plan:
    """A plan that removes about a third of the tokens at each stage, or one at a threshold of 0.5."""
    n = num_patches(model)
    knob = {"rate": 0.7, "removed": n // 4, "threshold": 0.5}[cls.knob]
    return Plan(cls, stages, uniform_counts(cls, n, len(stages), knob), knob=knob)


def build(cls: type[Reducer], n: int, keep: int) -> Reducer:
    """A reducer with default options and deterministic parameters."""
    return _drawn(cls(n, keep, DIM, HEADS))


def decide(reducer: Reducer, view: View) -> Reduction:
    """The decision of a reducer as the framework applies it."""
    decision = reducer(view)
    return decision.trimmed() if reducer.adaptive() and isinstance(decision, Merge) else decision


def reduced(cls: type[Reducer], model: Any) -> ReducedViT:
    """A tiny reduced model of a class, registered or not."""
    reduced = ReducedViT(model, tiny_plan(cls, model))
    _drawn(reduced.stages)
    return reduced.eval()


def images(count: int = 2, side: int = 48) -> Tensor:
    """Random images, [count, 3, side, side]."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def _drawn(module: M) -> M:
    """The module in evaluation mode, with deterministic parameters."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return module.eval()
