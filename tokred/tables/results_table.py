"""The short table: what people read of a run's rows, in the terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokred.tables import render
from tokred.tables.render import Table
from tokred.tables.row import BASELINE, COLUMNS, PUBLISHED, Row, csv_text

if TYPE_CHECKING:
    from rich.console import RenderableType

TABLE_HEADERS = ("Method", "Top-1 (%)", "Drop", "95 % interval", "FLOPs (G)", "Reduction", "Training", "Note")
UNLABELLED_HEADERS = ("Method", "Agreement (%)", "95 % interval", "KL", *TABLE_HEADERS[4:])


def display(row: Row) -> tuple[str, ...]:
    """The cells of the short table: what the paper's tables show, with the interval and the training beside it."""
    note = [row.options] if row.options else []
    if row.control:
        note.append("control")
    if row.unbeaten:
        note.append(f"not shown to beat {', '.join(row.unbeaten.split())}")
    if row.published_top1 is not None and row.top1 is not None:
        off = (
            f", off by {row.top1 - row.published_top1:+.3f}: check images and preparation"
            if row.baseline_off
            else ""
        )
        note.append(f"published: {row.published_top1:.3f}{off}")
    elif row.baseline_off:
        note.append("baseline off")
    if row.unfitted:
        note.append("unfitted: random parameters, no result")
    if row.training == PUBLISHED:
        note.append("published checkpoint, which its authors chose by validation accuracy")
    if row.fitted_here:
        note.append("fitted on or chosen by these images")
    if row.limited:
        note.append(f"first {row.n_images} images only" if row.n_images != 1 else "first image only")
    if row.n_failed:
        count = "1 image" if row.n_failed == 1 else f"{row.n_failed} images"
        note.append(f"{count} unreadable, {'left out' if row.on_error == 'skip' else 'counted as wrong'}")
    if row.smallest_batch:
        note.append(f"batches of {row.smallest_batch} for lack of memory")
    if row.status != "ok":
        note.append(row.error if row.status == "unfitted" else f"{row.status}: {row.error}")
    elif row.gap:
        note.append(f"{100 * abs(row.gap):.2f} points {'over' if row.gap > 0 else 'under'} the budget")
    return (
        row.method,
        *_measured(row),
        _number(row.gflops, "{:.3f}"),
        _number(None if row.reduction is None else 100 * row.reduction, "{:.2f} %"),
        row.training,
        "; ".join(note),
    )


def headers(rows: Iterable[Row]) -> tuple[str, ...]:
    """Of the short table: without labels agreement takes the place of accuracy."""
    return UNLABELLED_HEADERS if _unlabelled(rows) else TABLE_HEADERS


def _unlabelled(rows: Iterable[Row]) -> bool:
    measured = [row for row in rows if row.top1 is not None or row.agreement is not None]
    return bool(measured) and all(row.top1 is None for row in measured)


def _measured(row: Row) -> tuple[str, str, str]:
    """Accuracy, drop and its interval; without labels agreement, its interval and KL divergence."""
    if row.top1 is None and row.agreement is not None:
        low, high = row.agreement_lo, row.agreement_hi
        between = "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"
        return f"{100 * row.agreement:.2f}", between, _number(row.kl, "{:.4f}")
    return (
        _number(row.top1, "{:.2f}"),
        _number(None if row.method == BASELINE else row.drop, "{:.2f}"),
        "" if row.drop_lo is None or row.method == BASELINE else f"{row.drop_lo:.2f} to {row.drop_hi:.2f}",
    )


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)


def short_table(rows: Sequence[Row], title: str = "") -> Table:
    """The short table: best methods first, controls dimmed, and the best one bold where it is shown to be the best."""
    styles = [
        "bold" if row.method == BASELINE else "dim" if row.control else "red" if row.status != "ok" else ""
        for row in rows
    ]
    bold = frozenset((number, 1) for number, row in enumerate(rows) if row.best)
    return Table(
        title=title,
        headers=headers(rows),
        rows=[display(row) for row in rows],
        words=frozenset((0, 6, 7)),
        bold=bold,
        styles=styles,
    )


def sweep_table(rows: Sequence[Row], title: str = "") -> Table:
    """Top-1, or agreement, of each method at each budget, best method first; what a method cannot reach is a dash."""
    budgets, lines = by_budget(rows)
    cells = [[method, *(_cell(line.get(budget)) for budget in budgets)] for method, line in lines.items()]
    of = [next(iter(line.values())) for line in lines.values()]
    styles = ["bold" if row.method == BASELINE else "dim" if row.control else "" for row in of]
    bold = frozenset(
        (i, 1 + j)
        for i, line in enumerate(lines.values())
        for j, b in enumerate(budgets)
        if b in line and line[b].best
    )
    columns = (f"{headers(rows)[1]} at a reduction of", *(f"{100 * budget:.12g} %" for budget in budgets))
    notes = [f"First {row.n_images} images only." for row in rows if row.limited][:1]
    return Table(title=title, headers=columns, rows=cells, bold=bold, styles=styles, notes=notes)


def by_budget(rows: Iterable[Row]) -> tuple[list[float], dict[str, dict[float, Row]]]:
    """The budgets of a sweep, and the row of each method at each; plans at a knob are at none."""
    rows = list(rows)
    budgets = sorted({row.budget for row in rows if row.budget is not None})
    lines: dict[str, dict[float, Row]] = {}
    for row in rows:
        same = row.budget is None and not row.knob  # the baseline and the smaller model are the same at all
        for budget in budgets if same else [] if row.budget is None else [row.budget]:
            lines.setdefault(row.method, {})[budget] = row
    return budgets, lines


def aside(row: Row) -> str:
    """What has to stand beside a row's accuracy where there is no room for its note."""
    said = [f"at {100 * (row.reduction or 0):.1f} %"] if row.gap else []
    said += [
        text for text, true in (("random parameters", row.unfitted), ("fitted here", row.fitted_here)) if true
    ]
    return f" ({', '.join(said)})" if said else ""


def _cell(row: Row | None) -> str:
    """A row's accuracy in the table of a sweep."""
    return "-" if row is None or not _measured(row)[0] else _measured(row)[0] + aside(row)


def terminal_table(rows: Sequence[Row], title: str) -> RenderableType:
    """The short table for a terminal."""
    return render.terminal(short_table(rows, title))


def markdown(rows: Sequence[Row]) -> str:
    """The short table in Markdown."""
    return render.markdown(short_table(rows))


def latex(rows: Sequence[Row]) -> str:
    """The short table in LaTeX."""
    return render.latex(short_table(rows))


def formatted(rows: Sequence[Row], title: str, form: str, swept: bool = False) -> str | RenderableType:
    """The rows in one of `tables.FORMATS`: CSV and JSON hold all columns and raw numbers, the others the short table."""
    if form == "csv":
        return csv_text(rows)
    if form == "json":
        return json.dumps([{name: getattr(row, name) for name in COLUMNS} for row in rows], indent=2) + "\n"
    return (sweep_table if swept else short_table)(rows, title).render(form)
