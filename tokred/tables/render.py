"""Tables of text: for the terminal, in Markdown, and in LaTeX as papers set them. What is in a table is said elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from tokred.errors import TokredError, did_you_mean
from tokred.utils.text import for_latex, for_markdown, visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Format = Literal["table", "markdown", "latex", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class Table:
    """Cells of text under headers.

    Attributes:
        title: one line.
        headers: of the columns.
        rows: of as many cells each.
        words: columns that hold words and are set flush left; the others hold numbers.
        bold: cells to stand out, as (row, column).
        styles: of whole rows in the terminal: "bold", "dim", "red", or nothing.
        notes: sentences below the table.
        titled: whether Markdown and LaTeX have the title too.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset((0,))
    bold: frozenset[tuple[int, int]] = frozenset()
    styles: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    titled: bool = False


def check_format(name: str) -> str:
    """The name of a format that there is.

    Raises:
        TokredError: it is none.
    """
    if name not in FORMATS:
        raise TokredError(did_you_mean("--format", name, list(FORMATS)))
    return name


def drawn(table: Table, form: str) -> str | RichTable:
    """The table in one of `FORMATS`."""
    if form == "table":
        return terminal(table)
    return {"markdown": markdown, "latex": latex, "csv": csv, "json": as_json}[form](table)


def terminal(table: Table) -> RichTable:
    """The table for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    title = Text(
        visible(table.title), style="table.title"
    )  # a Text, unlike a string, has no markup and no emoji codes
    notes = Text("\n".join(map(visible, table.notes))) if table.notes else None
    drawn = RichTable(
        title=title, title_justify="left", header_style="bold", caption=notes, caption_justify="left"
    )
    for column, header in enumerate(table.headers):
        drawn.add_column(header, justify="left" if column in table.words else "right", overflow="fold")
    styles = table.styles or [""] * len(table.rows)
    for number, (row, style) in enumerate(zip(table.rows, styles, strict=True)):
        cells = (
            Text(visible(text), style="bold" if (number, column) in table.bold else "")
            for column, text in enumerate(row)
        )
        drawn.add_row(*cells, style=style)
    return drawn


def markdown(table: Table) -> str:
    """The table in Markdown, with its title where it is to have one."""
    lines = [
        table.headers,
        ["---" if column in table.words else "---:" for column in range(len(table.headers))],
    ]
    for number, row in enumerate(table.rows):
        cells = map(for_markdown, row)
        lines.append(
            [
                f"**{cell}**" if (number, column) in table.bold and cell else cell
                for column, cell in enumerate(cells)
            ]
        )
    below = "".join(f"\n{for_markdown(note)}\n" for note in table.notes)
    above = f"**{for_markdown(table.title)}**\n\n" if table.titled else ""
    return above + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + below


def latex(table: Table) -> str:
    """The table as a LaTeX tabular with the rules of the package booktabs."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    columns = "".join("l" if column in table.words else "r" for column in range(len(table.headers)))
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        line(map(for_latex, table.headers)),
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        cells = [
            for_latex(text) if column in table.words else _number(text) for column, text in enumerate(row)
        ]
        lines.append(
            line(
                rf"\textbf{{{cell}}}" if (number, column) in table.bold and cell else cell
                for column, cell in enumerate(cells)
            )
        )
    above = [f"% {visible(table.title)}"] if table.titled else []
    return "\n".join(
        [
            *above,
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {visible(note)}" for note in table.notes),
            "",
        ]
    )


def csv(table: Table) -> str:
    """The cells as CSV. Raw numbers are in a run's leaderboard, not here."""
    import pandas as pd

    return str(
        pd.DataFrame(list(map(list, table.rows)), columns=list(table.headers)).to_csv(
            index=False, lineterminator="\n"
        )
    )


def as_json(table: Table) -> str:
    """The table as a JSON list of objects."""
    return (
        json.dumps(
            [dict(zip(table.headers, row, strict=True)) for row in table.rows], indent=2, ensure_ascii=False
        )
        + "\n"
    )


def _number(text: str) -> str:
    """A number, or an interval of two, with minus signs instead of hyphens."""
    words = (
        f"${word}$" if word[:1] == "-" and word[1:2].isdigit() else for_latex(word)
        for word in text.split(" ")
    )
    return " ".join(words)
