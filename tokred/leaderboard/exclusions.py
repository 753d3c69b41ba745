"""Why a row cannot be ranked: what it says of itself, and what the rows beside it say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokred.leaderboard.evidence import Line, number
from tokred.tables.row import BASELINE

SETTING = (
    "model",
    "weights_hash",
    "dataset",
    "split",
    "img_size",
    "crop_pct",
    "interpolation",
    "precision",
    "on_error",
)
"""The columns in which rows have to agree before anything else, beside the number of images and their hash."""

BASELINE_OFF = "the unreduced model's top-1 is not what is published of these weights"
_SHORT = 1e-6  # of a budget; the matcher never falls short of one


def marks(line: Line) -> list[str]:
    """The reasons, most telling first; none for a row that can stand in a ranking."""
    if line["status"] != "ok":
        return [
            {"unfitted": "not fitted", "unreachable": "cannot reach this budget"}.get(
                line["status"], f"failed: {line['error']}"
            )
        ]
    found = [text for column, text in _FLAGS.items() if line[column] == "true"]
    if line["limited"] == "true":
        found.append(f"first {line['n_images'] or '?'} images only")
    top1 = number(line["top1"])
    if not line["top1"]:
        found.append("no labels, so no top-1")
    elif top1 is None or not 0 <= top1 <= 100:
        found.append(f"top-1 is {line['top1']}, no percentage")
    return found if line["method"] == BASELINE else found + _of_the_budget(line)


_FLAGS = {
    "unfitted": "random parameters, not fitted",
    "fitted_here": "fitted on or chosen by these images",
    "baseline_off": BASELINE_OFF,
}


def _of_the_budget(line: Line) -> list[str]:
    budget, reduction = number(line["budget"]), number(line["reduction"])
    if budget is None:
        return [] if line["control"] == "true" else ["its plan was set by hand, at no budget"]
    if reduction is not None and reduction < budget - _SHORT:
        return [f"saves {100 * reduction:.2f} % of the FLOPs, less than its budget of {100 * budget:g} %"]
    return []


def partition(lines: Sequence[Line]) -> list[list[int]]:
    """The places of rows that have a model, its weights, and images with their preparation in common.

    Rows about the first images of a split stand with those about all of them, if there are any: there they are marked.
    """
    found: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for place in sorted(range(len(lines)), key=lambda place: lines[place]["limited"] == "true"):
        line = lines[place]
        counts = found.setdefault(_setting(line), {})
        images = max(counts) if counts and line["limited"] == "true" else _images(line)
        counts.setdefault(images, []).append(place)
    return [places for _, counts in sorted(found.items()) for _, places in sorted(counts.items())]


def _setting(line: Line) -> tuple[str, ...]:
    seen = {**line, "weights_hash": line["weights_hash"] or line["weights"]}
    return tuple(seen[column] for column in SETTING)


def _images(line: Line) -> int:
    """How many images there were, those that could not be read included."""
    return int(
        (number(line["n_images"]) or 0)
        + ((number(line["n_failed"]) or 0) if line["on_error"] == "skip" else 0)
    )


def beside(lines: Sequence[Line], own: Sequence[Sequence[str]]) -> list[list[str]]:
    """The marks that rows of one part of `partition` get from each other; `own` are those that they have already.

    A name and a number of images stand for one set of images: that of most rows that nothing is wrong with. And what was reduced from a
    model that is not the published one is no result about it, in whichever row that is noted.
    """
    hashes = Counter(line["data_hash"] for line, marked in zip(lines, own, strict=True) if not marked)
    hashes = hashes or Counter(line["data_hash"] for line in lines)
    usual = min(hashes, key=lambda digest: (-hashes[digest], digest))
    off = any(
        line["method"] == BASELINE and BASELINE_OFF in marked for line, marked in zip(lines, own, strict=True)
    )
    found = []
    for line, marked in zip(lines, own, strict=True):
        more, digest = [], line["data_hash"]
        if digest != usual:
            more.append(
                f"other images than the other rows (hash {digest[:8] or 'unknown'}, theirs {usual[:8] or 'unknown'})"
            )
        if off and line["status"] == "ok" and BASELINE_OFF not in marked:
            more.append(BASELINE_OFF)
        found.append(more)
    return found


def all_marks(lines: Sequence[Line]) -> dict[int, list[str]]:
    """The marks of each row of a board by its `id`, but for those that need its evidence."""
    found = {id(line): marks(line) for line in lines}
    for places in partition(lines):
        members = [lines[place] for place in places]
        for line, more in zip(members, beside(members, [found[id(line)] for line in members]), strict=True):
            found[id(line)] += more
    return found


def remark(
    lines: Iterable[Line], marked: Mapping[int, Sequence[str]], disputed: Mapping[int, Sequence[str]]
) -> str:
    """One sentence about the rows among these that a board will mark; empty if there are none.

    Args:
        lines: rows.
        marked: `all_marks` of their board.
        disputed: what rows say that does not follow from their predictions, by the `id` of the row.
    """
    reasons: dict[str, list[str]] = {}
    for line in lines:
        found = (
            [f"{', '.join(disputed[id(line)])} by its predictions"]
            if id(line) in disputed
            else marked[id(line)]
        )
        if found:
            reasons.setdefault(found[0], []).append(line["method"])
    if not reasons:
        return ""
    count = sum(map(len, reasons.values()))
    named = "; ".join(
        f"{', '.join(dict.fromkeys(methods))} ({reason})" for reason, methods in reasons.items()
    )
    return f"{count} {'row is' if count == 1 else 'rows are'} marked and never ranked: {named}."
