"""The rules that a decision of a reducer obeys. Checking reads values, so models do not do it themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokred.core.reduction import Keep, Mask, Merge, Mix, Reduction


def broken_rule(decision: object, batch: int, n: int, keep: int | None, valid: Tensor | None = None) -> str:
    """The first rule that a decision breaks, as a sentence; "" if it breaks none.

    >>> broken_rule(Keep(torch.tensor([[0, 0]]), n=3), batch=1, n=3, keep=2)
    'Keep must not repeat an index.'

    Args:
        decision: what the reducer's `forward` returned.
        batch: number of images, B.
        n: number of patch tokens before the stage, N.
        keep: number of tokens that the stage keeps, M; None where it depends on the image.
        valid: [B, N], False for padding, where counts depend on the image.
    """
    if not isinstance(decision, Reduction) or isinstance(decision, Mask):
        return f"forward must return Keep, Merge or Mix, not {type(decision).__name__}."
    if keep is None:
        return next(_broken_by_image(decision, (batch, n), valid), "")
    return next(_broken(decision, (batch, n), keep), "")


def _broken_by_image(decision: Reduction, inputs: tuple[int, int], valid: Tensor | None) -> Iterator[str]:
    """Rules where counts depend on the image, besides those of any `Merge`."""
    if not (isinstance(decision, Merge) and decision.drops):
        yield "A method with a threshold must return Merge(..., drops=True)."
        return
    yield from _indices("Merge's label", decision.label, inputs, -1, decision.m)
    label = decision.label
    if valid is not None and (label[~valid] >= 0).any():
        yield "Padding, where view.valid is False, must be dropped."
    used = decision.carry(torch.ones_like(label, dtype=torch.float32).unsqueeze(-1)).squeeze(-1) > 0
    if not used[:, 0].all() or (used.int().diff(dim=1) > 0).any():
        yield "The groups that an image uses must be the first ones, and at least one."
    own = torch.arange(decision.m, device=label.device) <= label.amax(1, keepdim=True)
    yield from _merging(decision, own)


def _broken(decision: Reduction, inputs: tuple[int, int], keep: int) -> Iterator[str]:
    batch, n = inputs
    if isinstance(decision, Keep):
        yield from _indices("Keep's index", decision.index, (batch, keep), 0, n)
        if (decision.index.sort(dim=1).values.diff(dim=1) == 0).any():
            yield "Keep must not repeat an index."
        if decision.label is not None:
            yield from _indices("Keep's label", decision.label, inputs, -1, keep)
    elif isinstance(decision, Merge):
        if decision.m != keep:
            yield f"Merge must have m = {keep} groups here, not {decision.m}."
        yield from _indices("Merge's label", decision.label, inputs, -1 if decision.drops else 0, keep)
        if (decision.carry(torch.ones(batch, n, 1, device=decision.label.device)) == 0).any():
            yield "Every group of a Merge needs a member."
        yield from _merging(decision, torch.ones(batch, keep, dtype=torch.bool, device=decision.label.device))
    elif isinstance(decision, Mix):
        shape = (batch, keep, n)
        if decision.weight.shape != shape:
            yield f"Mix's weight must have the shape {list(shape)} here, not {list(decision.weight.shape)}."


def _merging(decision: Merge, used: Tensor) -> Iterator[str]:
    """Rules of how a Merge pools its groups, of which `used` [B, M] are in use."""
    if decision.reduce not in ("mean", "sum", "norm", "absmax"):
        yield f"Merge's reduce must be mean, sum, norm or absmax, not {decision.reduce}."
    if decision.reduce == "absmax" and decision.weight is not None:
        yield "A Merge by absmax takes no weight."
    if decision.mass is not None and (decision.sizes(decision.mass)[used] <= 0).any():
        yield "Merge's mass must leave every group a positive size."


def _indices(what: str, values: Tensor, shape: tuple[int, int], low: int, high: int) -> Iterator[str]:
    """Rules of integers in [low, high)."""
    if values.dtype != torch.int64 or values.shape != shape:
        dtype = str(values.dtype).removeprefix("torch.")
        yield f"{what} must be int64 of shape {list(shape)} here, not {dtype} of shape {list(values.shape)}."
    elif values.numel() and not (low <= int(values.min()) and int(values.max()) < high):
        found = f"{int(values.min())} to {int(values.max())}"
        yield f"{what} must lie between {low} and {high - 1} here, not go from {found}."
