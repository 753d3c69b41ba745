"""Printed figures beside measured ones: what a line of the paper's tables says, what comes out here, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokred.core.flops import CostTable
from tokred.core.match import at_knob, match
from tokred.errors import Unreachable
from tokred.studies.lotm_paper import printed
from tokred.studies.lotm_paper.printed import LAYER_SETS, Printed
from tokred.tables.render import Table
from tokred.tables.row import BASELINE, Row, csv_cell
from tokred.utils.text import spaced


@dataclass
class Line:
    """One line of a table: accuracies, drops and their differences in per cent, FLOPs in 10^9. None is "not printed" or "not measured".

    Attributes:
        layers: where the method reduces.
        k: tokens that LoTM removes at each stage where they are the paper's; None where the plan is matched to the budget.
        top1_diff: measured minus printed, on ImageNet-1K alone: other images have other accuracies.
        within: whether the interval of the measured accuracy holds the printed one.
        drop_printed: difference of the printed accuracies.
        control: a line that the paper does not have.
        unbeaten: controls that the method is not shown to beat, space-separated.
    """

    table: int
    model: str
    method: str
    layers: str = ""
    k: int | None = None
    tokens: str = ""
    training: str = ""
    gflops_printed: float | None = None
    gflops: float | None = None
    gflops_diff: float | None = None
    top1_printed: float | None = None
    top1: float | None = None
    top1_lo: float | None = None
    top1_hi: float | None = None
    top1_diff: float | None = None
    within: bool | None = None
    drop_printed: float | None = None
    drop: float | None = None
    drop_lo: float | None = None
    drop_hi: float | None = None
    control: bool = False
    error: str = ""
    unbeaten: str = ""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What makes it the same as a measured row."""
        return self.method, self.layers, self.k

    def count(self, gflops: float) -> None:
        """Enter FLOPs."""
        self.gflops = gflops
        self.gflops_diff = None if self.gflops_printed is None else gflops - self.gflops_printed

    def measure(self, row: Row, comparable: bool) -> None:
        """Enter what a comparison found; `comparable` says that it saw the paper's images."""
        if row.gflops is not None:
            self.count(row.gflops)
        self.tokens, self.training, self.error = row.tokens, row.training, row.error
        self.unbeaten = row.unbeaten
        self.top1, self.top1_lo, self.top1_hi = row.top1, row.top1_lo, row.top1_hi
        if row.method != BASELINE:
            self.drop, self.drop_lo, self.drop_hi = row.drop, row.drop_lo, row.drop_hi
        if (
            comparable
            and self.top1_printed is not None
            and row.top1 is not None
            and row.top1_lo is not None
            and row.top1_hi is not None
        ):
            self.top1_diff = row.top1 - self.top1_printed
            self.within = row.top1_lo <= self.top1_printed <= row.top1_hi


def planned(table: int, model: str, costs: CostTable) -> list[Line]:
    """The lines of a table for one model with their FLOPs. LoTM is there with both sets of layers, and, at a budget, matched to it."""
    found = []
    for one in printed.lines(table):
        if one.model != model:
            continue
        if one.method == BASELINE:
            line = _line(one)
            line.count(costs.dense / 1e9)
            found.append(line)
            continue
        if one.k is not None:
            found += [_at_k(one, one.k, layers, costs) for layers in LAYER_SETS]
        if table > 1:
            found.append(_at_budget(one, costs))
    return found


def _at_k(one: Printed, k: int, layers: tuple[int, ...], costs: CostTable) -> Line:
    line, found = _line(one), at_knob(costs, one.method, k, stages=layers)
    line.k, line.layers, line.tokens = k, spaced(layers), spaced(found.plan.tokens)
    line.count(found.flops / 1e9)
    return line


def _at_budget(one: Printed, costs: CostTable) -> Line:
    line = _line(one)
    try:
        found = match(costs, one.method, printed.BUDGET)
    except Unreachable as error:
        line.error = str(error)
        return line
    line.layers, line.tokens = spaced(found.plan.stages), spaced(found.plan.tokens)
    line.count(found.flops / 1e9)
    return line


def _line(one: Printed) -> Line:
    line = Line(one.table, one.model, one.method, top1_printed=one.top1, gflops_printed=one.gflops)
    if one.method != BASELINE:
        line.drop_printed = printed.baseline(one.table, one.model).top1 - one.top1
    return line


def csv_text(lines: Sequence[Line]) -> str:
    """All lines with all figures."""
    import pandas as pd

    columns = [field.name for field in fields(Line)]
    cells = [[csv_cell(getattr(line, name)) for name in columns] for line in lines]
    return str(pd.DataFrame(cells, columns=columns).to_csv(index=False, lineterminator="\n"))


def table(
    lines: Sequence[Line], title: str, measured: bool, comparable: bool, notes: Sequence[str] = ()
) -> Table:
    """The lines as a table.

    Args:
        lines: of one table.
        title: above it.
        measured: whether there is more than FLOPs.
        comparable: whether the images are the paper's. Else printed accuracies are left out, and printed drops are marked as ImageNet's.
        notes: below it.
    """
    columns = [column for column in _COLUMNS if column.shown(measured, comparable)]
    if len({line.model for line in lines}) == 1:
        columns = columns[1:]
    words = frozenset(place for place, column in enumerate(columns) if column.header in _WORDS)
    cells = [[column.cell(line) for column in columns] for line in lines]
    styles = ["bold" if line.method == BASELINE else "dim" if line.control else "" for line in lines]
    errors = [f"{line.method}: {line.error}" for line in lines if line.error]
    return Table(
        title=title,
        headers=[column.header for column in columns],
        rows=cells,
        words=words,
        styles=styles,
        notes=[*notes, *errors],
        titled=True,
    )


@dataclass(frozen=True)
class _Column:
    """A column, from which fields of a line it comes, and when it is there."""

    header: str
    pattern: str
    names: tuple[str, ...]
    when: str = ""  # "measured", "comparable" or "other" images; nothing for always

    def shown(self, measured: bool, comparable: bool) -> bool:
        return {
            "": True,
            "measured": measured,
            "comparable": measured and comparable,
            "other": measured and not comparable,
        }[self.when]

    def cell(self, line: Line) -> str:
        values: list[Any] = [getattr(line, name) for name in self.names]
        if self.names == ("within",):
            return {True: "yes", False: "no", None: ""}[values[0]]
        if self.names == ("layers",):
            return _short(values[0])
        if self.names == ("method",) and line.control:
            return f"{line.method}, control"
        return "" if None in values else self.pattern.format(*values)


def _short(layers: str) -> str:
    """Many layers in a row as "1 to 12"."""
    numbers = [int(layer) for layer in layers.split()]
    in_a_row = len(numbers) > 3 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if in_a_row else layers


_WORDS = ("Model", "Method", "Layers", "Training", "Not shown to beat")
_COLUMNS = (
    _Column("Model", "{}", ("model",)),
    _Column("Method", "{}", ("method",)),
    _Column("Layers", "{}", ("layers",)),
    _Column("k", "{}", ("k",)),
    _Column("FLOPs (G) printed", "{:.2f}", ("gflops_printed",)),
    _Column("FLOPs (G)", "{:.3f}", ("gflops",)),
    _Column("Difference", "{:+.3f}", ("gflops_diff",)),
    _Column("Top-1 (%) printed", "{:.2f}", ("top1_printed",), "comparable"),
    _Column("Top-1 (%)", "{:.2f}", ("top1",), "measured"),
    _Column("95 % interval", "{:.1f} to {:.1f}", ("top1_lo", "top1_hi"), "measured"),
    _Column("Difference", "{:+.2f}", ("top1_diff",), "comparable"),
    _Column("Holds it", "{}", ("within",), "comparable"),
    _Column("Drop", "{:.2f}", ("drop",), "measured"),
    _Column("95 % interval", "{:.1f} to {:.1f}", ("drop_lo", "drop_hi"), "measured"),
    _Column("Drop printed", "{:.2f}", ("drop_printed",), "comparable"),
    _Column("Drop on ImageNet-1K, printed", "{:.2f}", ("drop_printed",), "other"),
    _Column("Training", "{}", ("training",), "measured"),
    _Column("Not shown to beat", "{}", ("unbeaten",), "measured"),
)
