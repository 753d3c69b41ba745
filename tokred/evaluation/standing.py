"""How the rows of one run stand to each other: which controls a method does not beat, and whether one method is shown to be the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tokred.evaluation import significance
from tokred.tables.row import BASELINE, Row


def judge(rows: Sequence[Row], right: Mapping[int, np.ndarray], groups: np.ndarray) -> None:
    """Enter `unbeaten` and `best` into rows.

    A method beats a control where it is right more often and the paired test tells the two apart at 5 %. Controls of the method's own
    budget count, which nothing beats that costs more than the budget, and those without one. The best of a budget is shown to beat every
    other method there, whatever was trained for it; controls, unfitted methods, those that these images fitted and those that cost more
    than the budget have no part in that.

    Args:
        rows: of a run.
        right: [n] bool by place in `rows`: whether each image is right, or, without labels, whether the unreduced model says the same.
            Rows that failed are not in it.
        groups: [n], images that are not independent share a number.
    """
    for place, row in enumerate(rows):
        row.unbeaten, row.best = "", False
        if place in right and row.method != BASELINE and not row.control:
            controls = [i for i in right if rows[i].control and rows[i].budget in (row.budget, None)]
            row.unbeaten = " ".join(
                rows[i].method
                for i in controls
                if (row.gap < 0 and rows[i].budget is not None) or not _beats(right[place], right[i], groups)
            )
    for budget in {row.budget for row in rows} - {None}:
        rivals = [place for place in right if rows[place].budget == budget and competes(rows[place])]
        if len(rivals) > 1:
            scores = [float(right[place].mean()) for place in rivals]
            first = significance.leaders(scores, [right[place] for place in rivals], groups)
            for place in rivals:
                rows[place].best = first == [rivals.index(place)]


def _beats(method: np.ndarray, control: np.ndarray, groups: np.ndarray) -> bool:
    return (
        bool(method.mean() > control.mean())
        and significance.separated(control, method, groups) <= significance.ALPHA
    )


def competes(row: Row) -> bool:
    """Whether a row may be called the best of its budget."""
    return not (row.control or row.unfitted or row.fitted_here or row.gap < 0 or row.method == BASELINE)
