"""Kinds of token pairs on the grid of patches and along its raster sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: The name of each kind in tables and figures; the letters are the panels of LoTM's Fig. 1.
KINDS = {
    "adjacent": "(a) adjacent pairs",
    "window": "(b) windows of four",
    "all": "(c) all pairs",
    "square": "2 x 2 windows",
    "vertical": "vertical neighbours",
}


@dataclass(frozen=True)
class Pairs:
    """The token pairs of one grid, and the offset between any two tokens.

    Attributes:
        rows: rows of the grid of patches.
        columns: columns of the grid of patches.
        kinds: raster positions, [2, P] int64 with the smaller first, of each kind that has pairs on this
            grid.
        apart: [N * N] int64, the offset of any two tokens: `rows apart * columns + columns apart`.
    """

    rows: int
    columns: int
    kinds: dict[str, Tensor]
    apart: Tensor

    @property
    def tokens(self) -> int:
        """Number of patch tokens, N."""
        return self.rows * self.columns

    @classmethod
    def of(cls, rows: int, columns: int) -> Pairs:
        """All kinds of pairs on a grid.

        "adjacent" are the disjoint pairs (0, 1), (2, 3), ... of the sequence that LoTM compares; "window" all
        pairs within each run of four tokens; "square" all within each window of 2 x 2 patches; "vertical" a
        token and the one below it; "all" any two tokens. As in LoTM the sequence continues from line to line.
        Tokens that do not fill a window are left out.
        """
        n = rows * columns
        position = torch.arange(n).view(rows, columns)
        even = position[: rows // 2 * 2, : columns // 2 * 2]
        squares = even.reshape(rows // 2, 2, columns // 2, 2).transpose(1, 2).reshape(-1, 4)
        kinds = {
            "adjacent": _within(torch.arange(n // 2 * 2).view(-1, 2)),
            "window": _within(torch.arange(n // 4 * 4).view(-1, 4)),
            "all": _within(torch.arange(n).view(1, -1)),
            "square": _within(squares),
            "vertical": torch.stack([position[:-1].flatten(), position[1:].flatten()]),
        }
        row, column = torch.arange(n) // columns, torch.arange(n) % columns
        apart = (row[:, None] - row).abs() * columns + (column[:, None] - column).abs()
        kinds = {name: pairs for name, pairs in kinds.items() if pairs.numel()}
        return cls(rows, columns, kinds, apart.flatten())


def _within(windows: Tensor) -> Tensor:
    """All pairs within each window, [2, windows * w (w - 1) / 2], from [windows, w] positions."""
    first, second = torch.triu_indices(windows.shape[1], windows.shape[1], offset=1)
    return torch.stack([windows[:, first].flatten(), windows[:, second].flatten()])
