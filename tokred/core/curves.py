"""Curves through the patches of a grid: orders in which neighbours in the sequence are neighbours there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Curve = Literal["raster", "snake", "hilbert"]


def along(curve: Curve, grid: tuple[int, int], n: int, device: torch.device) -> Tensor:
    """The first n patches of a grid, [n] int64 raster numbers, in the order in which a curve passes them.

    >>> along("snake", (2, 3), 6, torch.device("cpu")).tolist()
    [0, 1, 2, 5, 4, 3]

    Args:
        curve: "raster" goes through every row from the left to the right; "snake" through every second row
            from the right to the left; "hilbert" is the generalised Hilbert curve (Červený), which fills a
            quarter of the grid before it goes to the next. The last two go from each patch to one beside it;
            "hilbert" takes one diagonal step where the longer side is odd and the shorter one even.
        grid: rows and columns.
        n: number of patches.
        device: where the order is put.
    """
    return torch.tensor([patch for patch in _passed(curve, *grid) if patch < n], device=device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _passed(curve: Curve, rows: int, columns: int) -> tuple[int, ...]:
    return _order(curve, rows, columns)  # compilers need not look into recursion


@cache
def _order(curve: Curve, rows: int, columns: int) -> tuple[int, ...]:
    if curve == "raster":
        return tuple(range(rows * columns))
    if curve == "snake":
        lines = [range(row * columns, (row + 1) * columns) for row in range(rows)]
        return tuple(patch for row, line in enumerate(lines) for patch in (line[::-1] if row % 2 else line))
    right, down = complex(columns, 0), complex(0, rows)
    cells = _hilbert(0j, *((right, down) if columns >= rows else (down, right)))
    return tuple(int(cell.imag) * columns + int(cell.real) for cell in cells)


def _hilbert(start: complex, length: complex, width: complex) -> Iterator[complex]:
    """Cells, column + row i, of a rectangle from the one at `start` to the one at the end of `length`.

    Both sides are vectors from that corner. A long rectangle is passed in two parts of its length. Another
    one in three: up the first half of the width, along the whole length in the second half, and down again.
    """
    steps, lines = round(abs(length)), round(abs(width))
    ahead, aside = length / steps, width / lines
    if lines == 1 or steps == 1:
        yield from (start + i * (ahead if lines == 1 else aside) for i in range(max(steps, lines)))
    elif 2 * steps > 3 * lines:
        part = _half(steps) * ahead
        yield from _hilbert(start, part, width)
        yield from _hilbert(start + part, length - part, width)
    else:
        up, middle = _half(lines) * aside, steps // 2 * ahead
        yield from _hilbert(start, up, middle)
        yield from _hilbert(start + up, length, width - up)
        yield from _hilbert(start + length - ahead + up - aside, -up, middle - length)


def _half(count: int) -> int:
    """About half of a count, even where it can be: an even part ends beside the next one's first cell."""
    half = count // 2
    return half + 1 if half % 2 and count > 2 else half
