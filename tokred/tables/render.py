"""One table class, and its forms: for the terminal, in Markdown, in LaTeX as papers set it, CSV and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

from tokred.errors import TokredError, did_you_mean
from tokred.utils.text import for_latex, for_markdown, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

Format = Literal["table", "markdown", "latex", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)

_WORD = 32  # characters of the longest word that a column makes room for
_NARROW = 12  # and where there is no room for that
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text under headers. Commands print it by `console.show(table.render(format))`.

    Cells are plain text, and so are title and notes: escaping, for rich as well, is done here.

    Attributes:
        headers: the columns' names; the terminal shows no header line where all are empty.
        rows: the cells, as many in each row as there are headers.
        title: one line above the table, which Markdown and LaTeX have only if `titled`.
        words: columns of words, which are flush left; the others hold numbers and are flush right.
        notes: sentences below the table.
        row_notes: sentences about single rows, by the row's place. Each stands below the table once, with a
            number that its rows have as a superscript behind their first cell.
        bold: cells that stand out, as (row, column); not in CSV and JSON.
        styles: rich styles of the rows in the terminal, such as "bold" or "dim"; empty if none has one.
        cell_styles: rich styles of single cells in the terminal, by (row, column).
        sections: rows under which the terminal draws a line.
        titled: whether Markdown and LaTeX have the title too.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: frozenset[int] = frozenset((0,))
    notes: Sequence[str] = ()
    row_notes: Mapping[int, Sequence[str]] = field(default_factory=dict)
    bold: frozenset[tuple[int, int]] = frozenset()
    styles: Sequence[str] = ()
    cell_styles: Mapping[tuple[int, int], str] = field(default_factory=dict)
    sections: frozenset[int] = frozenset()
    titled: bool = False

    def render(self, form: str = "table") -> str | RenderableType:
        """The table in one of `FORMATS`: "table" is what rich prints, the others are text."""
        return _FORMS[form](self)

    def __str__(self) -> str:
        """The table as `print` shows it."""
        from rich.console import Console

        console = Console()
        with console.capture() as capture:
            console.print(self.render())
        return capture.get().rstrip()

    def numbered(self) -> tuple[list[str], list[list[int]]]:
        """The distinct notes about rows, in order, and the numbers of each row's own, from 1."""
        notes = [self.row_notes.get(place, ()) for place in range(len(self.rows))]
        sentences = list(dict.fromkeys(chain(*notes)))
        number = {sentence: place for place, sentence in enumerate(sentences, start=1)}
        return sentences, [sorted({number[note] for note in own}) for own in notes]


def check_format(name: str) -> str:
    """The name itself; a `TokredError` if it is not one of `FORMATS`."""
    if name not in FORMATS:
        raise TokredError(did_you_mean("--format", name, list(FORMATS)))
    return name


def terminal(table: Table) -> RenderableType:
    """The table for a terminal, as wide as that is, and legible at 80 columns.

    Numbers are never broken, and words only where they are longer than `_WORD` or there is no room at all.
    """
    from rich.console import Group
    from rich.text import Text

    below = [f"{_superscript([number])} {note}" for number, note in enumerate(table.numbered()[0], start=1)]
    notes = [Text(visible(note), style="dim") for note in (*below, *table.notes)]
    return Group(_Fitted(table), *notes)


@dataclass(frozen=True)
class _Fitted:
    """Lays a table out when rich tells how wide the terminal is."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        yield _laid_out(self.table, options.max_width)


def _laid_out(table: Table, width: int) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text  # unlike a string, a Text has no markup and no emoji codes

    rich = RichTable(
        title=Text(visible(table.title), style="table.title") if table.title else None,
        title_justify="left",
        header_style="bold",
        show_header=any(table.headers),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    _, numbers = table.numbered()
    marks = [f" {_superscript(row)}" if row else "" for row in numbers]
    for column, characters in enumerate(_widths(table, marks, width)):
        rich.add_column(
            Text(_header(table, column)),
            justify="left" if column in table.words else "right",
            overflow="fold",
            no_wrap=column not in table.words,
            width=characters,
        )
    styles = table.styles or [""] * len(table.rows)
    for place, (row, style) in enumerate(zip(table.rows, styles, strict=True)):
        cells = [Text(visible(text), style=_style(table, place, column)) for column, text in enumerate(row)]
        cells[0].append(marks[place])
        rich.add_row(*cells, style=style, end_section=place in table.sections)
    return rich


def _widths(table: Table, marks: Sequence[str], width: int) -> list[int]:
    """The widths of the columns in characters; where room is short, words share what the numbers leave.

    rich's own choice can be wider than the terminal, which cuts the last columns off.
    """
    columns = range(len(table.headers))
    texts = [
        [*_header(table, column).split("\n"), *(visible(row[column]) for row in table.rows)]
        for column in columns
    ]
    texts[0] += [visible(row[0]) + mark for row, mark in zip(table.rows, marks, strict=True)]
    full = [max(map(len, cells)) for cells in texts]
    longest = [max((len(word) for text in cells for word in text.split()), default=0) for cells in texts]
    widths = [min(_WORD, longest[i]) if i in table.words else full[i] for i in columns]
    room = width - sum(widths) - 2 * len(widths) + 1
    for column in sorted(table.words, key=lambda column: -widths[column]):
        cut = min(max(-room, 0), max(widths[column] - _NARROW, 0))
        widths[column], room = widths[column] - cut, room + cut
    while room > 0 and widths != full:
        column = max(columns, key=lambda column: full[column] / max(widths[column], 1))
        widths[column], room = widths[column] + 1, room - 1
    return widths


def markdown(table: Table) -> str:
    """The table in Markdown."""
    sentences, marks = table.numbered()
    rule = ["---" if column in table.words else "---:" for column in range(len(table.headers))]
    lines = [table.headers, rule]
    for place, row in enumerate(table.rows):
        cells = [_bold(table, place, column, for_markdown(text), "**{}**") for column, text in enumerate(row)]
        if marks[place]:
            cells[0] += f" <sup>{_joined(marks[place])}</sup>"
        lines.append(cells)
    above = f"**{for_markdown(table.title)}**\n\n" if table.titled else ""
    numbered = "".join(
        f"\n<sup>{number}</sup> {for_markdown(note)}\n" for number, note in enumerate(sentences, start=1)
    )
    below = "".join(f"\n{for_markdown(note)}\n" for note in table.notes)
    return above + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + numbered + below


def latex(table: Table) -> str:
    """The table as a LaTeX tabular with the rules of the package booktabs; notes stand below it."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    sentences, marks = table.numbered()
    body = []
    for place, row in enumerate(table.rows):
        texts = [for_latex(text) if i in table.words else _number(text) for i, text in enumerate(row)]
        cells = [_bold(table, place, column, text, r"\textbf{{{}}}") for column, text in enumerate(texts)]
        if marks[place]:
            cells[0] += rf"\textsuperscript{{{_joined(marks[place])}}}"
        body.append(line(cells))
    columns = "".join("l" if column in table.words else "r" for column in range(len(table.headers)))
    numbered = [
        rf"\par{{\footnotesize\textsuperscript{{{number}}}~{for_latex(note)}\par}}"
        for number, note in enumerate(sentences, start=1)
    ]
    lines = [
        *([f"% {visible(table.title)}"] if table.titled else []),
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        line(map(for_latex, table.headers)),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *numbered,
        *(f"% {visible(note)}" for note in table.notes),
        "",
    ]
    return "\n".join(lines)


def csv(table: Table) -> str:
    """The cells as CSV. Raw numbers are in a run's leaderboard, not here."""
    import pandas as pd

    cells = pd.DataFrame(list(map(list, table.rows)), columns=list(table.headers))
    return str(cells.to_csv(index=False, lineterminator="\n"))


def as_json(table: Table) -> str:
    """The table as a JSON list with an object for each row."""
    objects = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
    return json.dumps(objects, indent=2, ensure_ascii=False) + "\n"


_FORMS = {"table": terminal, "markdown": markdown, "latex": latex, "csv": csv, "json": as_json}


def _header(table: Table, column: int) -> str:
    """A header, broken at hyphens and spaces where the cells of its column are shorter."""
    header = visible(table.headers[column])
    parts = header.replace("-", "- ").split()
    widest = max((len(text) for text in (*(row[column] for row in table.rows), *parts)), default=1)
    return "\n".join(textwrap.wrap(header, max(1, widest)))


def _superscript(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    between = "" if all(number < 10 for number in numbers) else " "
    return between.join(str(number).translate(_SUPERSCRIPT) for number in numbers)


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _style(table: Table, row: int, column: int) -> str:
    return table.cell_styles.get((row, column), "bold" if (row, column) in table.bold else "")


def _bold(table: Table, row: int, column: int, text: str, pattern: str) -> str:
    return pattern.format(text) if (row, column) in table.bold and text else text


def _number(text: str) -> str:
    """A number, or an interval of two, with minus signs instead of hyphens."""

    def word(text: str) -> str:
        start = text.lstrip("[(")
        if not (start[:1] == "-" and start[1:2].isdigit()):
            return for_latex(text)
        digits = start.rstrip("]),")
        before, after = text[: len(text) - len(start)], start[len(digits) :]
        return f"{for_latex(before)}${digits}${for_latex(after)}"

    return " ".join(map(word, text.split(" ")))
