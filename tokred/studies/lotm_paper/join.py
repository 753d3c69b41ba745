"""The join of measured rows with the rows printed in the paper, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tokred.studies.lotm_paper import printed
from tokred.studies.lotm_paper.printed import Printed
from tokred.tables.render import Table
from tokred.tables.row import BASELINE, Row, csv_cell
from tokred.utils.text import layer_range

Line = dict[str, Any]
"""Printed and measured values of one method, by the columns of the CSV. Accuracies, drops and their
differences are in per cent, FLOPs in 10^9; None means "not printed" or "not measured". Only the paper's own
plans have a `k`, not those matched to a budget; `within` says whether the printed accuracy lies in the
interval of the measured one."""


def join(table: int, model: str, rows: Sequence[Row], comparable: bool) -> list[Line]:
    """Join rows of one model with the printed ones, in the paper's order with the controls last.

    Args:
        table: number of the table.
        model: tokred's name of the model.
        rows: rows of a comparison, or of plans alone.
        comparable: whether the images are the paper's, so that accuracies can be compared.
    """
    lines = printed.lines(table, model)
    places = {(line.method, line.k if table == 1 else None): place for place, line in enumerate(lines)}
    pairs = [(places.get((row.method, _k(row) if table == 1 else None), len(lines)), row) for row in rows]
    # LoTM at the paper's k comes before LoTM matched to the budget; controls keep their order.
    pairs.sort(
        key=lambda pair: (pair[0], pair[1].budget is not None, "" if pair[1].control else pair[1].stages)
    )
    printed_lines = [*lines, None]
    return [
        {"table": table, "model": model, **_line(row, printed_lines[place], lines[0], comparable)}
        for place, row in pairs
    ]


def _line(row: Row, line: Printed | None, baseline: Printed, comparable: bool) -> Line:
    dense = row.method == BASELINE
    top1, gflops = (line.top1, line.gflops) if line else (None, None)
    lo, hi = row.top1_lo, row.top1_hi
    within = None if top1 is None or lo is None or hi is None else lo <= top1 <= hi
    return {
        "method": row.method,
        "layers": "" if dense else row.stages,
        "k": _k(row),
        "tokens": row.tokens,
        "training": row.training,
        "gflops_printed": gflops,
        "gflops": row.gflops,
        "gflops_diff": _difference(row.gflops, gflops),
        "top1_printed": top1,
        "top1": row.top1,
        "top1_lo": lo,
        "top1_hi": hi,
        "top1_diff": _difference(row.top1, top1) if comparable else None,
        "within": within if comparable else None,
        "drop_printed": None if dense else _difference(baseline.top1, top1),
        "drop": None if dense else row.drop,
        "drop_lo": None if dense else row.drop_lo,
        "drop_hi": None if dense else row.drop_hi,
        "control": row.control,
        "error": row.error,
        "unbeaten": row.unbeaten,
    }


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _k(row: Row) -> int | None:
    """The paper's k, for a row with that plan."""
    fixed = row.budget is None and row.method != BASELINE and not row.control
    return int(row.knob) if fixed and row.knob.isdigit() else None


def csv_text(lines: Sequence[Line]) -> str:
    """The lines as CSV with all columns."""
    frame = pd.DataFrame([{name: csv_cell(value) for name, value in line.items()} for line in lines])
    return frame.to_csv(index=False, lineterminator="\n")


_METHOD = {"Model": "{model}", "Method": "{method}", "Layers": "{layers}", "k": "{k:d}"}
_FLOPS = {
    "FLOPs (G) printed": "{gflops_printed:.2f}",
    "FLOPs (G)": "{gflops:.3f}",
    "Difference": "{gflops_diff:+.3f}",
}
_TOP1 = {"Top-1 (%)": "{top1:.2f}", "95 % interval": "{top1_lo:.1f} to {top1_hi:.1f}"}
_DROP = {"Drop": "{drop:.2f}", "95 % interval": "{drop_lo:.1f} to {drop_hi:.1f}"}
_LAST = {"Training": "{training}", "Not shown to beat": "{unbeaten}"}
_COMPARABLE = (
    {"Top-1 (%) printed": "{top1_printed:.2f}"},
    _TOP1,
    {"Difference": "{top1_diff:+.2f}", "Printed within interval": "{within_text}"},
    _DROP,
    {"Drop printed": "{drop_printed:.2f}"},
    _LAST,
)
_OTHER = (_TOP1, _DROP, {"Drop on ImageNet-1K, printed": "{drop_printed:.2f}"}, _LAST)
_WORDS = ("Model", "Method", "Layers", "Training", "Not shown to beat")


def table(lines: Sequence[Line], title: str, notes: Sequence[str], measured: bool, comparable: bool) -> Table:
    """The lines as a table.

    Args:
        lines: lines of one table.
        title: the title, also in Markdown and LaTeX.
        notes: sentences below the table, before the errors of methods.
        measured: whether accuracy was measured, not only FLOPs.
        comparable: whether the images are the paper's; otherwise printed drops are marked as ImageNet's.
    """
    parts = (_METHOD, _FLOPS, *((_COMPARABLE if comparable else _OTHER) if measured else ()))
    columns = [column for part in parts for column in part.items()]
    if len({line["model"] for line in lines}) == 1:
        columns = columns[1:]
    return Table(
        title=title,
        headers=[header for header, _ in columns],
        rows=[[_cell(pattern, line) for _, pattern in columns] for line in lines],
        words=frozenset(place for place, (header, _) in enumerate(columns) if header in _WORDS),
        styles=["bold" if line["method"] == BASELINE else "dim" if line["control"] else "" for line in lines],
        notes=[*notes, *(f"{line['method']}: {line['error']}" for line in lines if line["error"])],
        titled=True,
    )


def _cell(pattern: str, line: Line) -> str:
    texts = {
        "method": f"{line['method']}, control" if line["control"] else line["method"],
        "layers": layer_range(line["layers"]),
        "within_text": {True: "yes", False: "no", None: ""}[line["within"]],
    }
    try:
        return pattern.format(**{**line, **texts})
    except TypeError:  # the value is None
        return ""
