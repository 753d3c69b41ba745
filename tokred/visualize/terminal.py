"""A gallery in the terminal: small pictures of half blocks where it has colours, and a table where it has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tokred.utils.text import visible
from tokred.visualize.captions import confidence, prediction, token_counts
from tokred.visualize.overlay import cell, half_blocks
from tokred.visualize.trace import Map

if TYPE_CHECKING:
    from tokred.visualize.gallery import Gallery

_LEAST, _MOST = 14, 36  # characters across a picture


def pictures(gallery: Gallery, width: int) -> Iterator[Table]:
    """Each image with every method beside it, in rows that fit into so many characters."""
    names: list[str | None] = [None, *gallery.traced.maps]
    columns = gallery.traced.grid[1]
    wide = next((size for size in (2 * columns, columns) if _LEAST <= size <= _MOST), _MOST)
    wide = max(8, min(wide, width))
    across = max(1, (width + 2) // (wide + 2))
    for image in range(len(gallery.captions)):
        for start in range(0, len(names), across):
            grid = Table.grid(padding=(0, 2, 0, 0))
            some = names[start : start + across]
            for _ in some:
                grid.add_column(width=wide, no_wrap=True, overflow="ellipsis")
            grid.add_row(*(Text(visible(_title(gallery, name, image)), "bold") for name in some))
            grid.add_row(*(_picture(gallery, name, image, wide) for name in some))
            grid.add_row(*(_tokens(gallery, name, wide) for name in some))
            grid.add_row(*(_verdict(gallery, name, image, wide) for name in some), end_section=True)
            grid.add_row()
            yield grid


def table(gallery: Gallery) -> Table:
    """One row for each image and method."""
    made = Table(title=escape(visible(gallery.title)), title_justify="left", header_style="bold")
    for header in ("Image", "Method", "Tokens", "Prediction", "Confidence", "Changed"):
        made.add_column(header, overflow="fold", justify="right" if header == "Confidence" else "left")
    for image, caption in enumerate(gallery.captions):
        for row, (name, found) in enumerate(gallery.traced.maps.items()):
            said = gallery.verdict(name, image)
            texts = (
                ("", "", "")
                if said is None
                else (prediction(said)[0], confidence(said), "yes" if said.changed else "")
            )
            first = caption if row == 0 else ""
            tokens = " ".join(map(str, found.tokens))
            made.add_row(
                *map(escape, (first, visible(name), tokens, *texts)),
                end_section=row == len(gallery.traced.maps) - 1,
            )
    return made


def _title(gallery: Gallery, name: str | None, image: int) -> str:
    return gallery.captions[image] if name is None else name


def _picture(gallery: Gallery, name: str | None, image: int, wide: int) -> Text:
    traced = gallery.traced
    found = None if name is None else traced.maps[name]
    labels = found.labels[image, -1] if found is not None and found.layers else None
    pixels = traced.images[image]
    return half_blocks(cell(pixels, labels, traced.grid, wide / pixels.shape[1], lines=False))


def _tokens(gallery: Gallery, name: str | None, wide: int) -> str:
    found: Map = gallery.traced.dense if name is None else gallery.traced.maps[name]
    versions = (f"{found.tokens[0]} tokens",) if name is None else token_counts(found)
    return next((text for text in versions if len(text) <= wide), versions[-1])


def _verdict(gallery: Gallery, name: str | None, image: int, wide: int) -> Text:
    said = gallery.verdict(name, image)
    if said is None:
        return Text("")
    share = f"  {100 * said.share:.0f} %"
    text = next((text for text in prediction(said) if len(text) + len(share) <= wide), prediction(said)[-1])
    return Text(text + share, "bold red" if said.changed else "")
