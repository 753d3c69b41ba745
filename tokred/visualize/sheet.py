"""The content of a sheet: images on the left, pictures of each method beside them, headers and captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tokred.errors import TokredError
from tokred.plots import INK
from tokred.visualize.canvas import ALERT, GAP, MARGIN, MUTED, Canvas, Cell, Line, font_size, text_width
from tokred.visualize.overlay import cell
from tokred.visualize.panels import Panels, Texts, per_cent, token_counts

_WIDTH = 1720  # largest width of a sheet in pixels
_LEAST = 640  # smallest width, for the title
_MOST_PIXELS, _MOST_HEIGHT = 60_000_000, 60_000
_ALERT_TEXT = "#b34700"


def render(panels: Panels) -> Image.Image:
    """Draw a sheet."""
    height, width = panels.traced.images.shape[1:3]
    scale = picture_scale(height, width, panels.size)
    side, names = _size(height, width, scale), list(panels.traced.maps)
    across = columns(len(names), side[0], len({panels.rows[name].budget for name in names}))
    groups = [names[start : start + across] for start in range(0, len(names), across)] or [[]]
    sheet = Canvas(max(_LEAST, 2 * MARGIN + side[0] + across * (side[0] + GAP)), side)
    _heading(sheet, panels)
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
        sheet.paragraph(note, Line((), MUTED), sheet.size - 1)
    return sheet.image()


def check_extent(images: int, methods: int, rows: int, shape: tuple[int, int], size: int | None) -> None:
    """Raise a `TokredError` if a sheet would be too large for viewers."""
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


def _size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Width and height of the pictures."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def _header(texts: Sequence[Texts]) -> tuple[Line, ...]:
    name, cost = texts
    return Line(name, bold=True), Line(cost, MUTED)


def _input(panels: Panels, image: int, scale: float) -> Cell:
    """The image with its label and the prediction of the dense model."""
    lines, dense = [Line(panels.image_caption(image), bold=True)], panels.verdict(None, image)
    if dense:
        lines.append(Line((*(f"dense model: {name}" for name in dense.prediction), *dense.prediction)))
        lines.append(Line((f"{per_cent(dense.share)} % sure",), MUTED))
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
        lines.append(Line((f"{verdict.confidence} sure", verdict.confidence), MUTED))
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
        frame = Image.new("RGB", (18, 18), ALERT)
        frame.paste("white", (3, 3, 15, 15))
        entries.append((frame, "the prediction changes"))
    return entries


def _heading(canvas: Canvas, panels: Panels) -> None:
    """Draw the title, the subtitle and the legend."""
    canvas.paragraph(panels.title, Line((), bold=True), canvas.size + 5)
    canvas.paragraph(panels.subtitle, Line((), MUTED), canvas.size)
    canvas.y += 6
    x, edge = MARGIN, canvas.size + 4
    for swatch, meaning in _legend(panels):
        length = edge + 7 + round(text_width(meaning, canvas.size))
        if x > MARGIN and x + length > canvas.width - MARGIN:
            x, canvas.y = MARGIN, canvas.y + edge + 6
        canvas.picture(x, swatch.resize((edge, edge), Image.Resampling.NEAREST))
        canvas.text(x + edge + 7, canvas.y + 1, meaning, Line(()), canvas.size)
        x += length + 22
    canvas.y += edge + 14
