"""Titles and table cells of a board, the same for its page, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokred.leaderboard.ranked_row import RankedRow
from tokred.leaderboard.ranking_groups import Group, Setting
from tokred.tables.row import BASELINE, csv_cell

HEADERS = (
    *("Rank", "Method", "Top-1 (%)", "95 % interval", "Drop", "NLL rise", "FLOPs (G)"),
    *("Reduction", "Images/s", "Verified", "Note"),
)
WORDS = frozenset((1, 9, 10))  # columns that hold words

_TRAINING = {
    "none": "nothing trained",
    "reducer": "the method's own parameters trained",
    "full": "all weights trained with the reduction in place",
    "published": "weights published by the method's authors",
}
_VARIANTS = {
    "protocol": "{} stages",
    "schedule": "{} schedule",
    "stages": "layers {}",
    "seed": "seed {}",
    "device": "{}",
    "batch_size": "batches of {}",
    "adapter": "adapter {:.8}",
}
_UNREADABLE = {"skip": "unreadable images left out", "count-wrong": "unreadable images counted as wrong"}


def setting_title(setting: Setting) -> str:
    """The title of a setting: its model and images."""
    row = setting.row
    images = f" ({row.n_images:,} images)" if row.n_images is not None else ""
    if row.limited:  # then all rows are excluded, and each says how many
        images = " (first images only)"
    return f"{row.model} on {row.dataset} {row.split}".strip() + images


def setting_facts(setting: Setting) -> str:
    """A line about weights, images and their preparation."""
    row = setting.row
    weights_hash = f" (hash {row.weights_hash[:8]})" if row.weights_hash else ""
    facts = (
        f"weights: {row.weights or 'unknown'}{weights_hash}",
        f"images: hash {row.data_hash[:8] or 'unknown'}",
        f"{row.img_size} pixels" if row.img_size else "",
        f"{row.interpolation}, crop {row.crop_pct:g}" if row.crop_pct is not None else row.interpolation,
        row.precision,
        _UNREADABLE.get(row.on_error, ""),
    )
    return "; ".join(filter(None, facts))


def group_title(group: Group) -> str:
    """The title of a group: its budget and kind of training."""
    saved = "Plans set by hand" if group.budget is None else f"{100 * group.budget:.6g} % fewer FLOPs"
    trained = _TRAINING.get(group.training, f"training: {group.training}") if group.training else ""
    return ", ".join(filter(None, (saved, trained)))


def options(ranked: RankedRow, among: Sequence[RankedRow]) -> str:
    """The options of a row, and how it differs from rows of the same method and options in its table."""
    row = ranked.row
    same = [one.row for one in among if (one.row.method, one.row.options) == (row.method, row.options)]
    texts = []
    for name, pattern in _VARIANTS.items():
        value = csv_cell(getattr(row, name))
        several = len({getattr(other, name) for other in same}) > 1
        if value and (several or name == "schedule" or (name, value) == ("protocol", "common")):
            texts.append(pattern.format(value))
    return "; ".join(filter(None, [row.options, ", ".join(texts)]))


def verified(ranked: RankedRow) -> str:
    """The date and number of images of the verification that confirmed a row; empty if there is none."""
    result = ranked.verified or {}
    return f"{result.get('date', '')}, {result.get('images', '?')} images" if result.get("confirmed") else ""


def flags(ranked: RankedRow) -> list[str]:
    """Notes on a row besides its numbers and exclusions."""
    row, texts = ranked.row, []
    if ranked.unbeaten:
        texts.append(f"not significantly better than {', '.join(ranked.unbeaten)}")
    if ranked.unpaired:
        texts.append("ranked by intervals alone (unpaired)")
    if ranked.evidence is None and row.status == "ok":
        texts.append("no predictions")
    if row.n_failed:
        what = "left out" if row.on_error == "skip" else "counted as wrong"
        texts.append(f"{row.n_failed} images unreadable, {what}")
    if row.smallest_batch:
        texts.append(f"batches of {row.smallest_batch} for lack of memory")
    return texts


def better(ranked: RankedRow) -> list[str]:
    """Sentences about the rows than which a row is significantly better, by the measures that show it."""
    parts = {
        "top-1 and NLL": [one for one in ranked.better_top1 if one in ranked.better_nll],
        "top-1": [one for one in ranked.better_top1 if one not in ranked.better_nll],
        "NLL": [one for one in ranked.better_nll if one not in ranked.better_top1],
    }
    return [
        f"better by {measure} than {', '.join(dict.fromkeys(one.row.method for one in rows))}"
        for measure, rows in parts.items()
        if rows
    ]


def cells(ranked: RankedRow, among: Sequence[RankedRow]) -> tuple[str, ...]:
    """The cells of a row, one for each of `HEADERS`."""
    row, dense = ranked.row, ranked.row.method == BASELINE
    limits = (fixed(row.top1_lo, 2), fixed(row.top1_hi, 2))
    control = ["control"] if row.control else []
    notes = (*ranked.exclusions, *control, *better(ranked), *flags(ranked), options(ranked, among))
    return (
        "" if ranked.rank is None else str(ranked.rank),
        row.method,
        fixed(row.top1, 2),
        " to ".join(limits) if all(limits) else "",
        "" if dense else fixed(row.drop, 2),
        "" if dense else fixed(row.nll_rise, 3),
        fixed(row.gflops, 3),
        "" if dense or row.reduction is None else f"{100 * row.reduction:.2f} %",
        fixed(row.images_per_s, 1),
        verified(ranked),
        "; ".join(filter(None, notes)),
    )


def fixed(value: float | None, digits: int) -> str:
    """A number with a fixed number of decimals; empty for None."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else ""


def counted(settings: Sequence[Setting]) -> str:
    """A sentence about the size of a board."""
    groups = [group for setting in settings for group in setting.groups]
    ranked = [sum(one.rank is not None for one in group.ranked) for group in groups]
    apart = sum(len(setting.apart) for setting in settings) + sum(len(group.apart) for group in groups)
    excluded = f"; {_plural(apart, 'row')} excluded" if apart else ""
    count = sum(map(bool, ranked))
    return f"{_plural(sum(ranked), 'ranked row')} in {_plural(count, 'group')}{excluded}."


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
