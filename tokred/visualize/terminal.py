"""A gallery in the terminal: small pictures of half blocks if it has colours, else a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.table import Table as Grid
from rich.text import Text

from tokred.tables.render import Table
from tokred.utils.text import visible
from tokred.visualize.overlay import cell
from tokred.visualize.panels import Panels, Texts, token_counts

_NARROW, _WIDE = 14, 36  # characters across a picture


def pictures(panels: Panels, width: int) -> Iterator[Grid]:
    """Yield each image with the pictures of all methods, in rows that fit into the width in characters."""
    names: list[str | None] = [None, *panels.traced.maps]
    patches = panels.traced.grid[1]
    wide = next((size for size in (2 * patches, patches) if _NARROW <= size <= _WIDE), _WIDE)
    wide = max(8, min(wide, width))
    across = max(1, (width + 2) // (wide + 2))
    for image, caption in enumerate(panels.captions):
        for start in range(0, len(names), across):
            grid = Grid.grid(padding=(0, 2, 0, 0))
            columns = []
            for name in names[start : start + across]:
                grid.add_column(width=wide, no_wrap=True, overflow="ellipsis")
                columns.append((Text(visible(name or caption), "bold"), *_column(panels, name, image, wide)))
            for row in zip(*columns, strict=True):
                grid.add_row(*row)
            grid.add_row()
            yield grid


def table(panels: Panels) -> Table:
    """A table with one row for each image and method."""
    headers = ("Image", "Method", "Tokens", "Prediction", "Confidence", "Changed")
    rows, sections = list[Sequence[str]](), set[int]()
    for image, caption in enumerate(panels.captions):
        for number, (name, tokens) in enumerate(panels.traced.maps.items(), start=1):
            verdict, cells = panels.verdict(name, image), ("", "", "")
            if verdict:
                cells = (verdict.prediction[0], verdict.confidence, "yes" if verdict.changed else "")
            rows.append((caption if number == 1 else "", name, " ".join(map(str, tokens.tokens)), *cells))
        sections.add(len(rows) - 1)
    words = frozenset(range(len(headers))) - {4}
    return Table(title=panels.title, headers=headers, rows=rows, words=words, sections=frozenset(sections))


def half_blocks(image: Image.Image) -> Text:
    """A small picture as lines of text: each character shows two pixels, one above the other."""
    pixels = np.asarray(image.convert("RGB"))
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    text = Text(no_wrap=True, end="")
    for row, (above, below) in enumerate(zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True)):
        text.append("\n" if row else "")
        for high, low in zip(above, below, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*high), bgcolor=Color.from_rgb(*low)))
    return text


def _column(panels: Panels, name: str | None, image: int, wide: int) -> tuple[Text, str, Text]:
    """The picture, the tokens and the prediction of a model (None: the dense one) for an image."""
    traced, verdict = panels.traced, panels.verdict(name, image)
    tokens, pixels = traced.dense if name is None else traced.maps[name], traced.images[image]
    labels = tokens.labels[image, -1] if tokens.layers else None
    picture = half_blocks(cell(pixels, labels, traced.grid, wide / pixels.shape[1], lines=False))
    counts = (f"{tokens.tokens[0]} tokens",) if name is None else token_counts(tokens)
    prediction = Text("")
    if verdict:
        share = f"  {100 * verdict.share:.0f} %"
        style = "bold red" if verdict.changed else ""
        prediction = Text(_longest(verdict.prediction, wide - len(share)) + share, style)
    return picture, _longest(counts, wide), prediction


def _longest(versions: Texts, wide: int) -> str:
    """The first version that fits into a number of characters, else the last one."""
    return next((text for text in versions if len(text) <= wide), versions[-1])
