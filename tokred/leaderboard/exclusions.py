"""Reasons not to rank a row, from the row itself and from the rows beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokred.tables.row import BASELINE, Row

SETTING = (
    *("model", "weights_hash", "dataset", "split", "img_size", "crop_pct", "interpolation", "precision"),
    "on_error",
)
"""The columns in which rows have to agree to compare at all, beside the number of images and their hash."""

BASELINE_OFF = "the baseline's top-1 is not the published one of these weights"
_STATUS = {"unfitted": "not fitted", "unreachable": "cannot reach this budget"}
_SHORT = 1e-6  # of a budget; matching never falls short of one
_ROUNDING = 1e-9


def exclusions(row: Row) -> list[str]:
    """The reasons that a row itself gives, most telling first; none for a row that can be ranked."""
    if row.status != "ok":
        return [_STATUS.get(row.status, f"failed: {row.error}")]
    reasons = {
        "random parameters, not fitted": row.unfitted,
        "fitted on or chosen by these images": row.fitted_here,
        BASELINE_OFF: row.baseline_off,
        f"first {row.n_images or '?'} images only": row.limited,
        "no labels, so no top-1": row.top1 is None,
        f"top-1 is {row.top1}, no percentage": row.top1 is not None and not 0 <= row.top1 <= 100,
        f"contradicts itself: {contradiction(row)}": bool(contradiction(row)),
    }
    own = [reason for reason, applies in reasons.items() if applies]
    return own if row.method == BASELINE else own + _budget_exclusions(row)


def contradiction(row: Row) -> str:
    """A value outside its own limits, in words; empty if there is none."""
    for name, low, high in (
        ("top1", row.top1_lo, row.top1_hi),
        ("drop", row.drop_lo, row.drop_hi),
        ("agreement", row.agreement_lo, row.agreement_hi),
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


def _budget_exclusions(row: Row) -> list[str]:
    if row.budget is None:
        return [] if row.control else ["its plan was set by hand, at no budget"]
    if row.reduction is not None and row.reduction < row.budget - _SHORT:
        saved, asked = 100 * row.reduction, 100 * row.budget
        return [f"saves {saved:.2f} % of the FLOPs, less than its budget of {asked:g} %"]
    return []


def partition(rows: Sequence[Row]) -> list[list[int]]:
    """The places of rows that share a model, its weights, and images with their preparation.

    Rows about the first images of a split stand with those about all of them, if there are any, and are
    excluded there.
    """
    parts: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for place in sorted(range(len(rows)), key=lambda place: rows[place].limited):
        row = rows[place]
        setting = tuple(
            str((row.weights_hash or row.weights) if column == "weights_hash" else getattr(row, column))
            for column in SETTING
        )
        counts = parts.setdefault(setting, {})
        images = max(counts) if counts and row.limited else _images(row)
        counts.setdefault(images, []).append(place)
    return [places for _, counts in sorted(parts.items()) for _, places in sorted(counts.items())]


def _images(row: Row) -> int:
    """The number of images, unreadable ones included."""
    return (row.n_images or 0) + ((row.n_failed or 0) if row.on_error == "skip" else 0)


def mutual_exclusions(rows: Sequence[Row], own: Sequence[Sequence[str]]) -> list[list[str]]:
    """The exclusions of each row that follow from the rows beside it.

    A name and a number of images stand for one set of images: that of most rows without exclusions. And rows
    reduced from a model that is not the published one are no results about it, whichever row notes that.

    Args:
        rows: the rows of one part of `partition`.
        own: the exclusions that each row has already.
    """
    hashes = Counter(row.data_hash for row, reasons in zip(rows, own, strict=True) if not reasons)
    hashes = hashes or Counter(row.data_hash for row in rows)
    usual = min(hashes, key=lambda digest: (-hashes[digest], digest))
    off = any(
        row.method == BASELINE and BASELINE_OFF in reasons for row, reasons in zip(rows, own, strict=True)
    )
    mutual = []
    for row, reasons in zip(rows, own, strict=True):
        more = []
        if row.data_hash != usual:
            here, there = row.data_hash[:8] or "unknown", usual[:8] or "unknown"
            more.append(f"other images than the other rows (hash {here}, theirs {there})")
        if off and row.status == "ok" and BASELINE_OFF not in reasons:
            more.append(BASELINE_OFF)
        mutual.append(more)
    return mutual


def all_exclusions(rows: Sequence[Row]) -> dict[int, list[str]]:
    """The exclusions of each row of a board by its `id`, but for those that need its evidence."""
    reasons = {id(row): exclusions(row) for row in rows}
    for places in partition(rows):
        members = [rows[place] for place in places]
        for row, more in zip(
            members, mutual_exclusions(members, [reasons[id(row)] for row in members]), strict=True
        ):
            reasons[id(row)] += more
    return reasons


def summary(
    rows: Iterable[Row], excluded: Mapping[int, Sequence[str]], disputed: Mapping[int, Sequence[str]]
) -> str:
    """One sentence about those of some rows that a board will not rank; empty if there are none.

    Args:
        rows: the rows.
        excluded: `all_exclusions` of their board.
        disputed: the claims of rows that do not follow from their predictions, by the `id` of the row.
    """
    methods: dict[str, list[str]] = {}
    for row in rows:
        claims = [f"{', '.join(disputed[id(row)])} by its predictions"] if id(row) in disputed else []
        reasons = claims or list(excluded[id(row)])
        if reasons:
            methods.setdefault(reasons[0], []).append(row.method)
    if not methods:
        return ""
    count = sum(map(len, methods.values()))
    named = "; ".join(f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in methods.items())
    return f"{count} {'row is' if count == 1 else 'rows are'} excluded from the ranking: {named}."
