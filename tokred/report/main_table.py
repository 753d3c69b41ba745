"""The results table of the page: cells and notes, with sort keys, badges and drawn intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokred.report.run_data import RunData, setting
from tokred.tables.results_table import results_table, sweep_table
from tokred.tables.row import BASELINE, Row

_KEYS = {
    "Top-1": "top1",
    "Drop [95 % interval]": "drop",
    "Agreement [95 % interval]": "agreement",
    "KL": "kl",
    "NLL rise": "nll_rise",
    "Cosine [95 % interval]": "feature_cosine",
    "Error": "feature_error",
    "Patch cosine": "patch_cosine",
    "Patch error": "patch_error",
    "k-NN agreement": "knn_agreement",
    "k-NN top-1": "knn_top1",
    "k-NN drop [95 % interval]": "knn_drop",
    "GFLOPs": "gflops",
    "Reduction": "reduction",
    "Speed-up": "speedup",
}  # the values by which columns of numbers are sorted
_STATUS = {"ok": "", "unfitted": "not fitted", "unreachable": "out of reach"}
_BADGES = ("control", "unfitted: random parameters, no result")  # notes replaced by a badge


@dataclass(frozen=True)
class Cell:
    """A cell of the page.

    Attributes:
        text: the text.
        value: the number by which its column is sorted, as JavaScript reads it; "" sorts last.
        bar: positions of the ends and the middle of an interval and of zero, from 0 to 100; empty without
            an interval.
        badges: badges beside the text.
        notes: numbers of the notes below the table.
    """

    text: str
    value: str = ""
    bar: dict[str, Any] = field(default_factory=dict)
    badges: tuple[str, ...] = ()
    notes: Sequence[int] = ()


@dataclass(frozen=True)
class Line:
    """A row of the page; `kind` is its CSS class."""

    kind: str
    cells: list[Cell]


@dataclass(frozen=True)
class PageTable:
    """The results table.

    Attributes:
        headers: names of the columns, and whether they contain numbers.
        lines: the rows.
        about: sentences about all rows.
        notes: sentences about single rows, numbered from 1.
    """

    headers: list[tuple[str, bool]]
    lines: list[Line]
    about: Sequence[str]
    notes: list[str]


def page_table(data: RunData, defaults: Mapping[str, str] | None = None) -> PageTable:
    """The results table of a run; notes mention options that differ from the `defaults`."""
    rows, reach = data.ordered, _reach(data.rows)
    table = results_table(rows, defaults=defaults)
    sentences, numbers = table.numbered()
    number = {n: k for k, n in enumerate((n for n, s in enumerate(sentences, 1) if s not in _BADGES), 1)}
    several = len({setting(row) for row in rows if row.method != BASELINE}) > 1
    headers = [(name, column not in table.words) for column, name in enumerate(table.headers)]
    lines = []
    for row, texts, own in zip(rows, table.rows, numbers, strict=True):
        cells = [
            _cell(row, name, text, numeric, reach)
            for (name, numeric), text in zip(headers, texts, strict=True)
        ]
        cells[0] = Cell(row.method, badges=_badges(row), notes=[number[n] for n in own if n in number])
        if several:
            cells.insert(1, Cell("" if row.method == BASELINE else setting(row)))
        lines.append(Line(_kind(row), cells))
    if several:
        headers.insert(1, ("Budget", False))
    return PageTable(headers, lines, table.notes, [sentences[n - 1] for n in number])


def signed(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number with a true minus sign; "" for None."""
    if value is None:
        return ""
    text = pattern.format(value)
    return text[1:] if text.startswith("-") and not text.strip("-0.% ") else text.replace("-", "\u2212")


@dataclass(frozen=True)
class Pivot:
    """Accuracy by method and budget; `lines` have a name, whether it is a control, and cells."""

    budgets: Sequence[str]
    lines: list[tuple[str, bool, list[Cell]]]


def pivot(data: RunData) -> Pivot | None:
    """The table of a sweep; None at a single budget."""
    if len(data.budgets) < 2:
        return None
    table, controls = sweep_table(data.rows), {row.method for row in data.rows if row.control}
    lines = []
    for method, *texts in table.rows:
        cells = [Cell("") if text == "-" else Cell(text, text.split(" ")[0]) for text in texts]
        lines.append((method, method in controls, cells))
    return Pivot(list(table.headers[1:]), lines)


def _cell(row: Row, name: str, text: str, numeric: bool, reach: tuple[float, float]) -> Cell:
    """A cell of the results table on the page."""
    if not numeric:
        return Cell(text)
    value = getattr(row, _KEYS[name])
    if value is None or not text:
        return Cell("")
    bar = _bar(row, reach) if name.startswith("Drop") else {}
    return Cell(text.replace("-", "\u2212"), f"{value:.12g}", bar)


def _kind(row: Row) -> str:
    if row.method == BASELINE:
        return "baseline"
    if row.status != "ok":
        return "failed"
    if row.best:
        return "best"
    return "control" if row.control or row.unfitted else ""


def _badges(row: Row) -> tuple[str, ...]:
    status = _STATUS.get(row.status, row.status)
    marks = (row.best and "best", row.control and "control", row.unfitted and "random parameters", status)
    return tuple(mark for mark in marks if mark)


def _interval(row: Row) -> tuple[float, float, float] | None:
    """The lower limit, drop and upper limit of a row; None unless all are finite."""
    low, middle, high = row.drop_lo, row.drop, row.drop_hi
    if row.method == BASELINE or low is None or middle is None or high is None:
        return None
    return (low, middle, high) if np.isfinite([low, middle, high]).all() else None


def _bar(row: Row, reach: tuple[float, float]) -> dict[str, Any]:
    """Positions of the parts of a drawn interval; one far outside the strip is an arrow at its end."""
    interval = _interval(row)
    if interval is None:
        return {}
    low, high = reach
    values = np.clip([*interval, 0.0], low, high)
    ends = np.round(100 * (values - low) / (high - low), 1).tolist()
    return {**dict(zip(("lo", "at", "hi", "zero"), ends, strict=True)), "beyond": interval[0] > high}


def _reach(rows: Sequence[Row]) -> tuple[float, float]:
    """The ends of the strip on which intervals are drawn."""
    intervals = [interval for row in rows if (interval := _interval(row))]
    if not intervals:
        return -1.0, 1.0
    lows, _, highs = np.array(intervals, dtype=float).T
    high = min(max(float(highs.max()), 1.0), max(2 * float(np.quantile(highs, 0.75)), 1.0))
    low = min(0.0, float(lows.min()))
    pad = 0.04 * (high - low) if high > low else 1.0  # where all drops are zero
    return low - pad, high + pad
