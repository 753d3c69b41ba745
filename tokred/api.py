"""`reduce`: a reduced model from Python in one call."""

from __future__ import annotations

from typing import Any

from tokred.budget import match
from tokred.flops import CostTable
from tokred.schedule import Protocol
from tokred.vit import ReducedViT


def reduce(
    model: Any,
    method: str,
    budget: float = 0.3,
    *,
    protocol: Protocol = "native",
    stages: tuple[int, ...] | None = None,
    seed: int = 0,
    **options: Any,
) -> ReducedViT:
    """Wrap a timm ViT so that it saves the fraction `budget` of its FLOPs by `method`.

    The model itself is not changed and its weights are not copied. The plan is in `.plan` of the result.

    Args:
        model: a timm `VisionTransformer` of standard blocks.
        method: a registered name (`tokred methods` lists them).
        budget: between 0 and 1.
        protocol: "native" for the method's published layers, "common" for 4, 7, 10.
        stages: layers, one-based, that take the place of the protocol's.
        seed: of the methods that draw random numbers.
        options: of the method.

    Raises:
        TokredError: unknown names, an unsupported model, or a budget that the method cannot reach.
    """
    found = match(CostTable(model), method, budget, protocol=protocol, stages=stages, options=options)
    return ReducedViT(model, found.plan, seed=seed)
