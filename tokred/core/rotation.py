"""Rotary position embedding of tokens that are no longer the patches of a grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokred.core.lazy import once
from tokred.core.ops import raster, take_rows
from tokred.core.reduction import Keep, Reduction


@dataclass(frozen=True, eq=False)
class Rotation:
    """How the queries and keys of the patch tokens of a batch are rotated.

    A kept token keeps its rotation, whatever it absorbs. Any other token is rotated by the mean position of
    the patches that were merged into it, as if there were a patch.

    Attributes:
        table: sines and cosines of the angles of all patches, as timm has them: [N, 2 d], or [layers, H, N,
            2 d] where layers and heads have frequencies of their own.
        columns: number of columns of patches.
        places: [B, M, 3] float32, for each token the sums over its patches of row, column and 1; None while
            tokens are the patches.
    """

    table: Tensor
    columns: int
    places: Tensor | None = None

    def reduced(self, reduction: Reduction) -> Rotation:
        """The rotation of the tokens that a decision leaves."""
        places = self.places
        if places is None:
            places = raster(reduction.labels(), self.columns)
        if isinstance(reduction, Keep):
            return replace(self, places=take_rows(places, reduction.index))
        return replace(self, places=reduction.carry(places))

    def of(self, layer: int) -> Tensor:
        """Sines and cosines at a layer, one-based: the table's while tokens are the patches.

        Later they have a batch dimension, [B, 1 or H, M, 2 d].
        """
        if self.table.ndim == 2:
            return self.table if self.places is None else self._shared
        table = self.table[layer - 1]
        return table if self.places is None else _at(table, self.columns, self.places)

    @once
    def _shared(self) -> Tensor:
        """Sines and cosines of all layers."""
        assert self.places is not None
        return _at(self.table.unsqueeze(0), self.columns, self.places)


def _at(table: Tensor, columns: int, places: Tensor) -> Tensor:
    """The table [H, N, 2 d] at the mean positions of tokens, [B, H, M, 2 d].

    Angles are linear in row and column, so the angle at a position is that of the nearest patch and a
    fraction of the steps to its neighbours. Patches themselves get the table's values to the bit.
    """
    position = places[..., :2] / places[..., 2:].clamp(min=torch.finfo(torch.float32).tiny)
    nearest = position.round()
    offset = (position - nearest)[:, None, :, :, None]  # [B, 1, M, 2, 1]
    patch = (nearest[..., 0] * columns + nearest[..., 1]).long()
    sine, cosine = table[:, patch].movedim(0, 1).chunk(2, dim=-1)  # [B, H, M, d]
    down = _step(table, columns) if table.shape[1] > columns else 0.0
    right = _step(table, 1) if columns > 1 else 0.0
    angle = offset[..., 0, :] * down + offset[..., 1, :] * right
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([sine * cos + cosine * sin, cosine * cos - sine * sin], dim=-1)


def _step(table: Tensor, patches: int) -> Tensor:
    """The angles between the first patch and the one some patches behind it, [H, 1, d]."""
    (sine, cosine), (other_sine, other_cosine) = (
        table[:, index : index + 1].float().chunk(2, dim=-1) for index in (0, patches)
    )
    return torch.atan2(other_sine * cosine - other_cosine * sine, other_cosine * cosine + other_sine * sine)
