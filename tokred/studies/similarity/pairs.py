"""Kinds of pairs of tokens, on the grid of patches and along their raster sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: What each kind is called in tables and figures; the letters are the panels of LoTM's Fig. 1.
KINDS = {
    "adjacent": "(a) adjacent pairs",
    "window": "(b) windows of four",
    "all": "(c) all pairs",
    "square": "2 x 2 windows",
    "vertical": "vertical neighbours",
}


@dataclass(frozen=True)
class Pairs:
    """The pairs of tokens of one grid, and how far apart any two lie.

    Attributes:
        rows: of the grid of patches.
        columns: of it.
        kinds: name to [2, P] int64, positions in raster order, the smaller first; a kind without pairs on this grid is left out.
        apart: [N * N] int64, for any two tokens `rows apart * columns + columns apart`.
    """

    rows: int
    columns: int
    kinds: dict[str, Tensor]
    apart: Tensor

    @property
    def tokens(self) -> int:
        """Patch tokens of the grid, N."""
        return self.rows * self.columns

    @classmethod
    def of(cls, rows: int, columns: int) -> Pairs:
        """All kinds of pairs on a grid.

        "adjacent" are the disjoint pairs (0, 1), (2, 3), ... of the sequence that LoTM compares, "window" all six pairs within each run
        of four tokens of the sequence, "square" those within each window of 2 x 2 patches, "vertical" each token and the one below it,
        "all" any two tokens. As in LoTM the sequence does not end with a line: with an odd number of columns some neighbours in it are
        the end of a line and the beginning of the next. What is left over of windows takes no part.
        """
        n = rows * columns
        position = torch.arange(n).view(rows, columns)
        even = position[: rows // 2 * 2, : columns // 2 * 2]
        squares = even.reshape(rows // 2, 2, columns // 2, 2).transpose(1, 2).reshape(-1, 4)
        found = {
            "adjacent": _within(torch.arange(n // 2 * 2).view(-1, 2)),
            "window": _within(torch.arange(n // 4 * 4).view(-1, 4)),
            "all": _within(torch.arange(n).view(1, -1)),
            "square": _within(squares),
            "vertical": torch.stack([position[:-1].flatten(), position[1:].flatten()]),
        }
        row, column = torch.arange(n) // columns, torch.arange(n) % columns
        apart = (row[:, None] - row).abs() * columns + (column[:, None] - column).abs()
        return cls(
            rows, columns, {name: pairs for name, pairs in found.items() if pairs.numel()}, apart.flatten()
        )


def _within(windows: Tensor) -> Tensor:
    """All pairs within each window, [2, windows * w (w - 1) / 2], of [windows, w] positions."""
    first, second = torch.triu_indices(windows.shape[1], windows.shape[1], offset=1)
    return torch.stack([windows[:, first].flatten(), windows[:, second].flatten()])
