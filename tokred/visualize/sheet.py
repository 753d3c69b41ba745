"""Drawing a sheet: images on the left, pictures of each method beside them, with headers and captions.

One matplotlib axes covers the sheet. Its unit is the pixel, from the top left, so pictures are not resampled.
Each text is the longest of its versions that fits into its column.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tokred.errors import TokredError
from tokred.plots import COLOURS, INK, any_script, style
from tokred.visualize.overlay import cell
from tokred.visualize.panels import Panels, Texts, per_cent, token_counts

MARGIN, GAP = 22, 12
_WIDTH = 1720  # largest width of a sheet in pixels
_LEAST = 640  # smallest width, for the title
_MOST_PIXELS, _MOST_HEIGHT = 60_000_000, 60_000
_DPI = 64  # a power of two, so that sizes in inches are exact
_MUTED, _RULE, _ALERT, _ALERT_TEXT = "#5b6166", "#c9cdd1", COLOURS[1], "#b34700"


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


def render(panels: Panels) -> Image.Image:
    """Draw a sheet."""
    height, width = panels.traced.images.shape[1:3]
    scale = picture_scale(height, width, panels.size)
    side, names = _size(height, width, scale), list(panels.traced.maps)
    across = columns(len(names), side[0], len({panels.rows[name].budget for name in names}))
    groups = [names[start : start + across] for start in range(0, len(names), across)] or [[]]
    sheet = _Sheet(max(_LEAST, 2 * MARGIN + side[0] + across * (side[0] + GAP)), side)
    sheet.heading(panels)
    first = _header((("input",), (f"dense model: {panels.gflops:.2f} G", f"{panels.gflops:.2f} G")))
    for image in range(len(panels.captions)):
        if image:
            sheet.rule()
        for number, group in enumerate(groups):
            if image == 0 or len(groups) > 1:
                sheet.header([first if number == 0 else (), *(_header(panels.header(n)) for n in group)])
            for row, layer in enumerate(panels.layers or (None,)):
                left = _input(panels, image, scale) if number == row == 0 else None
                sheet.row([left, *(_cell(panels, name, image, scale, layer) for name in group)])
    sheet.rule()
    for note in panels.notes:
        sheet.paragraph(note, Line((), _MUTED), sheet.size - 1)
    return sheet.image()


def check_extent(images: int, methods: int, rows: int, shape: tuple[int, int], size: int | None) -> None:
    """Check that a sheet is not too large for viewers.

    Raises:
        TokredError: it would be too large.
    """
    width, height = _size(*shape, picture_scale(*shape, size))
    across = columns(methods, width)
    total = images * rows * math.ceil(methods / max(1, across)) * (height + 7 * font_size(width))
    if (across + 1) * (width + GAP) * total > _MOST_PIXELS or total > _MOST_HEIGHT:
        what = f"A page of {images} images with {methods} methods would be {total:.0f} pixels high"
        raise TokredError(f"{what}; show fewer images or methods, or smaller pictures with --size.")


def picture_scale(height: int, width: int, size: int | None) -> float:
    """The scale of pictures: by default to 224 to 384 pixels, by a whole number for small images."""
    longer = max(height, width)
    if size is not None:
        return size / longer
    return math.ceil(224 / longer) if longer < 224 else min(longer, 384) / longer


def columns(methods: int, width: int, budgets: int = 1) -> int:
    """The number of methods side by side: as many as fit, in rows of similar length.

    If possible, the budgets of a method are in the same row.
    """
    most = max(1, (_WIDTH - 2 * MARGIN + GAP) // (width + GAP) - 1)
    if budgets > 1 and methods > most >= budgets:
        return most - most % budgets
    return math.ceil(methods / math.ceil(methods / most)) if methods else 1


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


def _size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Width and height of the pictures."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def _header(texts: Sequence[Texts]) -> tuple[Line, ...]:
    name, cost = texts
    return Line(name, bold=True), Line(cost, _MUTED)


def _input(panels: Panels, image: int, scale: float) -> Cell:
    """The image with its label and the prediction of the dense model."""
    lines, dense = [Line(panels.image_caption(image), bold=True)], panels.verdict(None, image)
    if dense:
        lines.append(Line((*(f"dense model: {name}" for name in dense.prediction), *dense.prediction)))
        lines.append(Line((f"{per_cent(dense.share)} % sure",), _MUTED))
    return Cell(cell(panels.traced.images[image], None, panels.traced.grid, scale), tuple(lines))


def _cell(panels: Panels, name: str, image: int, scale: float, layer: int | None) -> Cell:
    """The tokens of a method on an image after a layer (None: the last stage), and its prediction."""
    traced, tokens = panels.traced, panels.traced.maps[name]
    count, labels = tokens.after(layer or max(tokens.layers, default=0))
    counted = token_counts(tokens)
    at_layer = (f"layer {layer}: {count} tokens", f"{layer}: {count} tokens")
    lines = [Line(counted if layer is None else at_layer)]
    is_last = layer in (None, *panels.layers[-1:])
    verdict = panels.verdict(name, image) if is_last else None
    if verdict:
        colour = _ALERT_TEXT if verdict.changed else INK
        lines.append(Line(verdict.prediction, colour, bold=verdict.changed))
        lines.append(Line((f"{verdict.confidence} sure", verdict.confidence), _MUTED))
    group = labels[image] if tokens.layers else None
    picture = cell(traced.images[image], group, traced.grid, scale)
    return Cell(picture, tuple(lines), bool(verdict and verdict.changed))


def _legend(panels: Panels) -> list[tuple[Image.Image, str]]:
    """Swatches and their meanings, for the styles on this sheet."""
    colours = np.array([[[150, 88, 60], [66, 96, 120]], [[150, 88, 60], [88, 120, 70]]], dtype=np.uint8)
    patches = colours.repeat(9, 0).repeat(9, 1)
    # The two patches at the left are one token, or all four are dropped.
    kept, dropped = (cell(patches, np.array(labels), (2, 2)) for labels in ([0, 1, 0, 2], [-1] * 4))
    entries = [(kept, "between lines: one token, in the mean colour of its patches")]
    if any((tokens.labels < 0).any() for tokens in panels.traced.maps.values()):
        entries.append((dropped, "grey and hatched: dropped"))
    if any(verdict.changed for verdict in panels.verdicts):
        frame = Image.new("RGB", (18, 18), _ALERT)
        frame.paste("white", (3, 3, 15, 15))
        entries.append((frame, "the prediction changes"))
    return entries


class _Sheet:
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

    def heading(self, panels: Panels) -> None:
        """Draw the title, the subtitle and the legend."""
        self.paragraph(panels.title, Line((), bold=True), self.size + 5)
        self.paragraph(panels.subtitle, Line((), _MUTED), self.size)
        self.y += 6
        x, edge = MARGIN, self.size + 4
        for swatch, meaning in _legend(panels):
            length = edge + 7 + round(text_width(meaning, self.size))
            if x > MARGIN and x + length > self.width - MARGIN:
                x, self.y = MARGIN, self.y + edge + 6
            self.picture(x, swatch.resize((edge, edge), Image.Resampling.NEAREST))
            self.text(x + edge + 7, self.y + 1, meaning, Line(()), self.size)
            x += length + 22
        self.y += edge + 14

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
                look: dict[str, Any] = {"fill": False, "ec": _ALERT, "lw": 3 * 72 / _DPI, "zorder": 3}
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
