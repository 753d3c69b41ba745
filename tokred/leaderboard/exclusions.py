"""Reasons not to rank a row that follow from the row alone."""

from __future__ import annotations

import math

from tokred.tables.row import BASELINE, MEASURES, Row

BASELINE_OFF = "the baseline's top-1 is not the published one of these weights"
_STATUS = {"unfitted": "not fitted", "unreachable": "cannot reach this budget"}
_SHORT = 1e-6  # tolerance of a budget; matching never saves less
_ROUNDING = 1e-9


def exclusions(row: Row) -> list[str]:
    """The reasons not to rank a row, most important first; empty for a row that can be ranked."""
    if row.status != "ok":
        return [_STATUS.get(row.status, f"failed: {row.error}")]
    conflict, is_method = contradiction(row), row.method != BASELINE
    by_hand = is_method and row.budget is None and not row.control
    reduction, budget = row.reduction, row.budget
    falls_short = is_method and reduction is not None and budget is not None and reduction < budget - _SHORT
    reasons = {
        "random parameters, not fitted": row.unfitted,
        "fitted on or chosen by these images": row.fitted_here,
        BASELINE_OFF: row.baseline_off,
        f"first {row.n_images or '?'} images only": row.limited,
        "no classifier, so no top-1": row.feature_cosine is not None or row.knn_top1 is not None,
        "no labels, so no top-1": row.top1 is None,
        f"top-1 is {row.top1}, not a percentage": row.top1 is not None and not 0 <= row.top1 <= 100,
        f"contradicts itself: {conflict}": conflict,
        "its plan was set by hand, without a budget": by_hand,
        f"saves {_percent(reduction, '.2f')} of the FLOPs, less than its budget of {_percent(budget)}": (
            falls_short
        ),
    }
    return [reason for reason, applies in reasons.items() if applies]


def contradiction(row: Row) -> str:
    """A sentence about the first value outside its limits; empty if all are inside."""
    for name, low, high in (
        ("top1", row.top1_lo, row.top1_hi),
        ("drop", row.drop_lo, row.drop_hi),
        ("agreement", row.agreement_lo, row.agreement_hi),
        ("nll_rise", row.nll_rise_lo, row.nll_rise_hi),
        *((name, getattr(row, f"{name}_lo"), getattr(row, f"{name}_hi")) for name in MEASURES),
        ("top5", row.top1, 100.0 if row.top1 is not None else None),
        ("reduction", None, 1.0),
    ):
        value = getattr(row, name)
        if value is None or not math.isfinite(value):
            continue
        if (low is not None and value < low - _ROUNDING) or (high is not None and value > high + _ROUNDING):
            limits = " to ".join(f"{limit:g}" for limit in (low, high) if limit is not None)
            return f"{name} is {value:g}, outside {limits}"
    return ""


def _percent(share: float | None, digits: str = "g") -> str:
    return "" if share is None else f"{100 * share:{digits}} %"
