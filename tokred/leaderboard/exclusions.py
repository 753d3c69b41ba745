"""Reasons not to rank a row that the row itself gives."""

from __future__ import annotations

import math

from tokred.tables.row import BASELINE, Row

BASELINE_OFF = "the baseline's top-1 is not the published one of these weights"
_STATUS = {"unfitted": "not fitted", "unreachable": "cannot reach this budget"}
_SHORT = 1e-6  # of a budget; matching never falls short of one
_ROUNDING = 1e-9


def exclusions(row: Row) -> list[str]:
    """The reasons that a row itself gives, most telling first; none for a row that can be ranked."""
    if row.status != "ok":
        return [_STATUS.get(row.status, f"failed: {row.error}")]
    contrary, methods = contradiction(row), row.method != BASELINE
    by_hand = methods and row.budget is None and not row.control
    saved, asked = row.reduction, row.budget
    dear = methods and saved is not None and asked is not None and saved < asked - _SHORT
    reasons = {
        "random parameters, not fitted": row.unfitted,
        "fitted on or chosen by these images": row.fitted_here,
        BASELINE_OFF: row.baseline_off,
        f"first {row.n_images or '?'} images only": row.limited,
        "no labels, so no top-1": row.top1 is None,
        f"top-1 is {row.top1}, no percentage": row.top1 is not None and not 0 <= row.top1 <= 100,
        f"contradicts itself: {contrary}": contrary,
        "its plan was set by hand, at no budget": by_hand,
        f"saves {_percent(saved, '.2f')} of the FLOPs, less than its budget of {_percent(asked)}": dear,
    }
    return [reason for reason, applies in reasons.items() if applies]


def contradiction(row: Row) -> str:
    """A value outside its own limits, in words; empty if there is none."""
    for name, low, high in (
        ("top1", row.top1_lo, row.top1_hi),
        ("drop", row.drop_lo, row.drop_hi),
        ("agreement", row.agreement_lo, row.agreement_hi),
        ("nll_rise", row.nll_rise_lo, row.nll_rise_hi),
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
