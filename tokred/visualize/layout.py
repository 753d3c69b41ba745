"""A page of pictures: a heading, what the drawing means, columns with headers, and blocks of cells with text under them.

It knows nothing about tokens. Text is shortened to the width that it has; what must be whole belongs into the notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from tokred.plots import COLOURS, INK

Style = Literal["plain", "bold", "muted", "alert"]

ALERT = COLOURS[1]
_INKS: dict[Style, str] = {
    "plain": INK,
    "bold": INK,
    "muted": "#5b6166",
    "alert": "#b34700",
}  # the last: ALERT, dark enough for text
MARGIN, GAP = 22, 12
_FRAME = "#c9cdd1"
_LEAST = 640  # width of a page, so that its heading has room
MOST_PIXELS = 60_000_000


@dataclass(frozen=True)
class Line:
    """A line of text: the first of its versions that fits, else the last one, shortened: at its end, or in the `middle`, as names are."""

    versions: tuple[str, ...]
    style: Style = "plain"
    middle: bool = False


@dataclass(frozen=True)
class Cell:
    """A picture with lines under it; framed where `alert` says that something happened there."""

    picture: Image.Image | None
    lines: tuple[Line, ...] = ()
    alert: bool = False


@dataclass(frozen=True)
class Block:
    """A picture at the left and beside it rows of cells, one cell for each column."""

    first: Cell
    rows: Sequence[Sequence[Cell]]


@dataclass
class Page:
    """What is on a page.

    Attributes:
        title: its heading.
        legend: swatches with what they mean.
        first: header lines of the pictures at the left.
        columns: header lines of every column of cells.
        blocks: one below the other.
        notes: at the end.
        across: columns side by side; more go on in further rows.
    """

    title: str
    subtitle: str
    legend: Sequence[tuple[Image.Image, str]]
    first: tuple[Line, ...]
    columns: Sequence[tuple[Line, ...]]
    blocks: Sequence[Block]
    notes: Sequence[str] = field(default_factory=list)
    across: int = 6


def sheet(page: Page, side: tuple[int, int]) -> Image.Image:
    """Draw a page.

    Args:
        page: what is on it. All pictures have one size.
        side: width and height of the pictures.
    """
    across = max(1, min(page.across, len(page.columns)))
    width = max(_LEAST, 2 * MARGIN + (across + 1) * side[0] + across * GAP)
    canvas = _Canvas(width, side, font_size(side[0]))
    canvas.heading(page)
    groups = [
        range(start, min(start + across, len(page.columns))) for start in range(0, len(page.columns), across)
    ] or [range(0)]
    if len(groups) == 1:
        canvas.header([page.first, *page.columns])
    for number, block in enumerate(page.blocks):
        canvas.rule(number > 0)
        canvas.block(block, groups, page if len(groups) > 1 else None)
    canvas.rule(bool(page.notes))
    for note in page.notes:
        canvas.paragraph(note, "muted", canvas.size - 1)
    return canvas.cut()


def font_size(width: int) -> int:
    """Of the text under pictures so wide: it grows with them, between 11 and 16 pixels."""
    return max(11, min(16, round(width / 17)))


class _Canvas:
    """A page in the making: drawn from the top, longer whenever it must be."""

    def __init__(self, width: int, side: tuple[int, int], size: int) -> None:
        self.side, self.size, self.y = side, size, MARGIN
        self.image = Image.new("RGB", (width, 1024), "white")
        self.draw = ImageDraw.Draw(self.image)

    def room(self, height: int) -> None:
        if self.y + height + MARGIN > self.image.height:
            longer = Image.new("RGB", (self.image.width, 2 * self.image.height + height), "white")
            longer.paste(self.image)
            self.image, self.draw = longer, ImageDraw.Draw(longer)

    def text(self, x: int, line: Line, width: int, size: int | None = None) -> None:
        """One line at (x, y); y stays."""
        font = _font(line.style in ("bold", "alert"), size or self.size)
        self.draw.text(
            (x, self.y), fitted(line.versions, font, width, line.middle), fill=_INKS[line.style], font=font
        )

    def step(self, size: int | None = None) -> int:
        """From a line to the next."""
        return round(1.42 * (size or self.size))

    def paragraph(self, text: str, style: Style, size: int) -> None:
        font, width = _font(style == "bold", size), self.image.width - 2 * MARGIN
        for line in wrapped(text, font, width):
            self.room(self.step(size))
            self.text(MARGIN, Line((line,), style), width, size)
            self.y += self.step(size)

    def heading(self, page: Page) -> None:
        self.paragraph(page.title, "bold", self.size + 5)
        self.paragraph(page.subtitle, "muted", self.size)
        self.y += 6
        x, font, edge = MARGIN, _font(False, self.size), self.size + 4
        for swatch, meaning in page.legend:
            length = edge + 7 + round(font.getlength(meaning))
            if x > MARGIN and x + length > self.image.width - MARGIN:
                x, self.y = MARGIN, self.y + edge + 6
            self.image.paste(swatch.resize((edge, edge), Image.Resampling.NEAREST), (x, self.y))
            self.draw.text(
                (x + edge + 7, self.y + edge // 2), meaning, fill=_INKS["plain"], font=font, anchor="lm"
            )
            x += length + 22
        self.y += edge + 14

    def header(self, columns: Iterable[tuple[Line, ...]]) -> None:
        """Lines over each column, the pictures at the left included, on the same height."""
        columns = list(columns)
        top, most = self.y, max((len(lines) for lines in columns), default=0)
        self.room(most * self.step())
        for column, lines in enumerate(columns):
            self.y = top
            for number, line in enumerate(lines):
                self.text(self.left(column), line, self.side[0], self.size + (number == 0))
                self.y += self.step()
        self.y = top + most * self.step() + 4

    def left(self, column: int) -> int:
        return MARGIN + column * (self.side[0] + GAP)

    def rule(self, drawn: bool) -> None:
        if drawn:
            self.room(20)
            self.draw.line((MARGIN, self.y + 4, self.image.width - MARGIN, self.y + 4), fill=_FRAME)
            self.y += 16

    def block(self, block: Block, groups: Sequence[range], headers: Page | None) -> None:
        for group, columns in enumerate(groups):
            if headers:
                self.header(
                    [() if group else headers.first, *(headers.columns[column] for column in columns)]
                )
            for number, row in enumerate(block.rows):
                first = block.first if group == number == 0 else None
                self.row(first, [row[column] for column in columns])
                self.y += 8

    def row(self, first: Cell | None, cells: Sequence[Cell]) -> None:
        top, most = self.y, max(len(cell.lines) for cell in (*cells, *filter(None, [first])))
        height = self.side[1] + 7 + most * self.step()
        self.room(height)
        for column, cell in enumerate((first, *cells)):
            if cell is not None:
                self.y = top
                self.cell(self.left(column), cell)
        self.y = top + height

    def cell(self, x: int, cell: Cell) -> None:
        width, height = self.side
        if cell.alert:
            self.draw.rectangle(
                (x - 4, self.y - 4, x + width + 3, self.y + height + 3), outline=ALERT, width=3
            )
        if cell.picture is not None:
            self.image.paste(cell.picture, (x, self.y))
        self.y += height + 7
        for line in cell.lines:
            self.text(x, line, width)
            self.y += self.step()

    def cut(self) -> Image.Image:
        return self.image.crop((0, 0, self.image.width, self.y + MARGIN // 2))


def fitted(versions: Sequence[str], font: ImageFont.FreeTypeFont, width: float, middle: bool = False) -> str:
    """The first version that is not wider than this, else the last one, shortened at its end or in its middle."""
    for text in versions:
        if font.getlength(text) <= width:
            return text
    low, high = 0, len(versions[-1])
    while low < high:  # the most characters that fit
        kept = (low + high + 1) // 2
        low, high = (
            (kept, high)
            if font.getlength(_shortened(versions[-1], kept, middle)) <= width
            else (low, kept - 1)
        )
    return _shortened(versions[-1], low, middle)


def _shortened(text: str, kept: int, middle: bool) -> str:
    tail = kept // 2 if middle else 0
    return text[: kept - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The text in lines that are not wider than this; a word that is wider is shortened."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted((word,), font, width))
    return lines


@lru_cache(maxsize=16)
def _font(bold: bool, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: it has the arrows and most alphabets."""
    import matplotlib as mpl

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)
