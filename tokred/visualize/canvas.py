"""Drawing pictures and text in columns.

One matplotlib axes covers the canvas. Its unit is the pixel from the top left, so pictures are not resampled.
Each text is the longest of its versions that fits into its column.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tokred.plots import COLOURS, INK, any_script, style
from tokred.visualize.panels import Texts

MARGIN, GAP = 22, 12
MUTED, ALERT = "#5b6166", COLOURS[1]
_RULE = "#c9cdd1"
_DPI = 64  # a power of two, so that sizes in inches are exact


@dataclass(frozen=True)
class Line:
    """A line of text under or above a picture."""

    versions: Texts
    colour: str = INK
    bold: bool = False


@dataclass(frozen=True)
class Cell:
    """A picture and the lines under it; framed where the prediction changes."""

    picture: Image.Image
    lines: tuple[Line, ...]
    alert: bool = False


def font_size(width: int) -> int:
    """The size in pixels of text under pictures of that width."""
    return max(11, min(16, round(width / 17)))


def fitted(versions: Texts, width: float, size: float, bold: bool = False) -> str:
    """The first version that fits into the width, else the last one, shortened in the middle."""
    text = versions[-1]
    halves = [(length - length // 2, len(text) - length // 2) for length in range(len(text) - 1, 0, -1)]
    cuts = (f"{text[:head].rstrip()}…{text[tail:].lstrip()}" for head, tail in halves)
    candidates = itertools.chain(versions, cuts)
    return next((one for one in candidates if text_width(one, size, bold) <= width), "…")


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in pixels, at a font size in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    with any_script():
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


class Canvas:
    """A sheet that is being drawn; `y` is the position of the next line or picture.

    Args:
        width: width in pixels.
        side: width and height of the pictures.
    """

    def __init__(self, width: int, side: tuple[int, int]) -> None:
        from matplotlib.figure import Figure

        self.width, self.side, self.size, self.y = width, side, font_size(side[0]), MARGIN
        self.figure = Figure(dpi=_DPI)
        with style():
            self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()

    def image(self) -> Image.Image:
        """The finished sheet."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        height = self.y + MARGIN // 2
        self.figure.set_size_inches(self.width / _DPI, height / _DPI)
        self.axes.set(xlim=(0, self.width), ylim=(height, 0))
        canvas = FigureCanvasAgg(self.figure)
        with style(), any_script():
            canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    def paragraph(self, text: str, line: Line, size: int) -> None:
        """Draw a text across the sheet, in as many lines as it needs."""
        width = self.width - 2 * MARGIN
        length = max(12, int(len(text) * width / max(text_width(text, size, line.bold), 1)))
        for part in textwrap.wrap(text, round(0.94 * length)):
            self.text(MARGIN, self.y, fitted((part,), width, size, line.bold), line, size)
            self.y += _step(size)

    def header(self, headers: Sequence[Sequence[Line]]) -> None:
        """Draw two lines above each picture of a row."""
        for column, lines in enumerate(headers):
            self.lines(column, lines, self.y, larger=True)
        self.y += 2 * _step(self.size) + 4

    def row(self, cells: Sequence[Cell | None]) -> None:
        """Draw pictures side by side with their lines; None leaves a place empty."""
        from matplotlib.patches import Rectangle

        width, height = self.side
        contents = [(column, content) for column, content in enumerate(cells) if content is not None]
        for column, content in contents:
            self.picture(self.left(column), content.picture)
            self.lines(column, content.lines, self.y + height + 7)
            if content.alert:
                corner = (self.left(column) - 2.5, self.y - 2.5)
                look: dict[str, Any] = {"fill": False, "ec": ALERT, "lw": 3 * 72 / _DPI, "zorder": 3}
                self.axes.add_patch(Rectangle(corner, width + 5, height + 5, **look))
        self.y += height + 15 + max(len(content.lines) for _, content in contents) * _step(self.size)

    def lines(self, column: int, lines: Iterable[Line], y: int, larger: bool = False) -> None:
        """Draw lines of text in a column."""
        for number, line in enumerate(lines):
            size = self.size + (larger and number == 0)
            text = fitted(line.versions, self.side[0], size, line.bold)
            self.text(self.left(column), y + number * _step(self.size), text, line, size)

    def left(self, column: int) -> int:
        """The left edge of a column."""
        return MARGIN + column * (self.side[0] + GAP)

    def text(self, x: float, y: float, text: str, line: Line, size: int) -> None:
        """Draw a text at (x, y), the top left of its line."""
        look = {"color": line.colour, "weight": "bold" if line.bold else "normal", "va": "baseline"}
        with style():
            self.axes.text(x, y + size, text, fontsize=size * 72 / _DPI, parse_math=False, **look)

    def picture(self, x: int, picture: Image.Image) -> None:
        """Draw a picture at (x, `y`) without resampling."""
        extent = (x, x + picture.width, self.y + picture.height, self.y)
        exact = {"interpolation": "none", "interpolation_stage": "rgba"}
        self.axes.imshow(picture, extent=extent, aspect="auto", **exact)

    def rule(self) -> None:
        """Draw a line across the sheet."""
        self.axes.plot((MARGIN, self.width - MARGIN), (self.y + 4.5,) * 2, color=_RULE, lw=72 / _DPI)
        self.y += 16


def _step(size: int) -> int:
    """The height of a line of text."""
    return round(1.42 * size)
