"""The page's main table: which columns, what stands in each cell, and by what it is sorted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tokred.report.run_data import Material, setting
from tokred.tables.results_table import aside, by_budget, row_notes
from tokred.tables.row import BASELINE, Row


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what stands there.
        value: by what a column of numbers is sorted, as JavaScript reads it; "" sorts last.
        bar: of an interval, where its ends, its middle and zero are, from 0 to 100; none without an interval.
        badges: marks beside the text.
    """

    text: str
    value: str = ""
    bar: dict[str, Any] = field(default_factory=dict)
    badges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column: its header, whether it holds numbers, and what it makes of a row."""

    header: str
    numeric: bool
    cell: Callable[[Row], Cell]


@dataclass(frozen=True)
class Line:
    """A row of the page: its kind decides how it looks."""

    kind: str
    cells: list[Cell]


def signed(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number with a true minus sign; "" for None."""
    if value is None:
        return ""
    text = pattern.format(value)
    return text[1:] if text.startswith("-") and not text.strip("-0.% ") else text.replace("-", "\u2212")


def number(
    name: str, pattern: str = "{:.2f}", scale: float = 1.0, baseline: bool = True
) -> Callable[[Row], Cell]:
    """What makes a cell of a numeric column of the leaderboard, empty in the unreduced model's row where `baseline` is false."""

    def cell(row: Row) -> Cell:
        value = getattr(row, name)
        if value is None or not np.isfinite(value) or (row.method == BASELINE and not baseline):
            return Cell("")
        return Cell(signed(scale * value, pattern), f"{value:.12g}")

    return cell


def columns(material: Material) -> list[Column]:
    """The columns in which at least one row has something."""
    reach = _reach(material.rows)
    chosen = [
        Column("Method", False, _method),
        Column("Budget", False, lambda row: Cell("" if row.method == BASELINE else setting(row))),
        Column("Top-1 (%)", True, number("top1")),
        Column("Drop", True, number("drop", baseline=False)),
        Column("95 % interval of the drop", True, lambda row: _interval(row, reach)),
        Column("FLOPs (G)", True, number("gflops", "{:.3f}")),
        Column("Reduction", True, number("reduction", "{:.2f} %", 100)),
        Column("Images/s", True, number("images_per_s", "{:.1f}")),
        Column("Speed-up", True, number("speedup", "{:.2f} ×")),
        Column("Agreement", True, number("agreement", "{:.2f} %", 100)),
        Column("95 % interval of the agreement", True, _agreement),
        Column("Training", False, lambda row: Cell(row.training)),
        Column("Note", False, lambda row: Cell(_note(row))),
    ]
    several = len({setting(row) for row in material.rows if row.method != BASELINE}) > 1
    return [
        column
        for column in chosen
        if any(column.cell(row).text for row in material.rows) and (several or column.header != "Budget")
    ]


def lines(material: Material, chosen: Sequence[Column]) -> list[Line]:
    """The rows of the page."""
    return [Line(_kind(row), [column.cell(row) for column in chosen]) for row in material.ordered]


def _kind(row: Row) -> str:
    if row.method == BASELINE:
        return "baseline"
    if row.status != "ok":
        return "failed"
    return "best" if row.best else "control" if row.control or row.unfitted else ""


def _method(row: Row) -> Cell:
    status = {"ok": "", "unfitted": "not fitted", "unreachable": "out of reach"}.get(row.status, row.status)
    marks = (row.best and "best", row.control and "control", row.unfitted and "random parameters", status)
    return Cell(row.method, badges=tuple(mark for mark in marks if mark))


def _note(row: Row) -> str:
    """The note of the other tables, without what the page says once for all rows, or by a badge."""
    said = {
        "control",
        f"first {row.n_images} images only",
        f"batches of {row.smallest_batch} for lack of memory",
    }
    notes = row_notes(row, defaults={})
    return "; ".join(note for note in notes if note not in said and "unreadable, " not in note)


def _interval(row: Row, reach: tuple[float, float]) -> Cell:
    if not _interval_known(row):
        return Cell("")
    assert row.drop is not None
    assert row.drop_lo is not None
    assert row.drop_hi is not None
    low, high = reach

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 1)

    ends = {"lo": place(row.drop_lo), "hi": place(row.drop_hi), "at": place(row.drop), "zero": place(0.0)}
    beyond = row.drop_lo > high
    return Cell(
        f"{signed(row.drop_lo)} to {signed(row.drop_hi)}", f"{row.drop_lo:.12g}", {**ends, "beyond": beyond}
    )


def _interval_known(row: Row) -> bool:
    values = (row.drop, row.drop_lo, row.drop_hi)
    return row.method != BASELINE and all(value is not None and np.isfinite(value) for value in values)


def _agreement(row: Row) -> Cell:
    """Only images without labels have one."""
    if row.agreement_lo is None or row.agreement_hi is None:
        return Cell("")
    return Cell(f"{100 * row.agreement_lo:.2f} to {100 * row.agreement_hi:.2f} %", f"{row.agreement_lo:.12g}")


def _reach(rows: Sequence[Row]) -> tuple[float, float]:
    """From where to where the bars of intervals go. One that is far beyond all others is an arrow at the end."""
    limits = [(row.drop_lo, row.drop_hi) for row in rows if _interval_known(row)]
    if not limits:
        return -1.0, 1.0
    lows, highs = np.array(limits, dtype=float).T
    high = min(max(float(highs.max()), 1.0), max(2 * float(np.quantile(highs, 0.75)), 1.0))
    low = min(0.0, float(lows.min()))
    pad = 0.04 * (high - low) if high > low else 1.0  # where all drops are nothing
    return low - pad, high + pad


@dataclass(frozen=True)
class Pivot:
    """Top-1 of each method at each budget: what a sweep is read from. `lines` have a name, whether it is a control, and cells."""

    budgets: list[str]
    lines: list[tuple[str, bool, list[Cell]]]


def pivot(material: Material) -> Pivot | None:
    """The table of a sweep; None at a single budget."""
    budgets, lines = by_budget(material.rows)
    if len(budgets) < 2:
        return None
    score = (
        number("top1")
        if any(row.top1 is not None for row in material.rows)
        else number("agreement", "{:.2f} %", 100)
    )

    def cell(row: Row | None) -> Cell:
        found = Cell("") if row is None else score(row)
        return replace(found, text=found.text + aside(row)) if row and found.text else found

    found = [
        (method, any(row.control for row in at.values()), [cell(at.get(budget)) for budget in budgets])
        for method, at in lines.items()
    ]
    return Pivot([f"{100 * budget:.12g} %" for budget in budgets], found)
