"""A board in words and cells, the same for its page, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from tokred.leaderboard.evidence import Line, number
from tokred.leaderboard.ranking_groups import Group, Setting, Standing
from tokred.tables.row import BASELINE

HEADERS = (
    "Rank",
    "Method",
    "Top-1 (%)",
    "95 % interval",
    "Drop",
    "FLOPs (G)",
    "Reduction",
    "Images/s",
    "Verified",
    "Note",
)
NUMERIC = frozenset((0, 2, 3, 4, 5, 6, 7))

_TRAINING = {
    "none": "nothing trained",
    "reducer": "the method's own parameters trained",
    "full": "all weights trained with the reduction in place",
    "published": "weights that the method's authors published",
}
_VARIANTS = (("protocol", "{} stages"), ("stages", "layers {}"), ("seed", "seed {}"), ("device", "{}"), ("batch_size", "batches of {}"),
             ("adapter", "adapter {:.8}"))  # fmt: skip


def setting_title(setting: Setting) -> str:
    """Model and images."""
    line = setting.line
    count = number(line["n_images"])
    images = f" ({count:,.0f} images)" if count is not None else ""
    if line["limited"] == "true":  # then all rows are marked, and each mark says how many
        images = " (first images only)"
    return f"{line['model']} on {line['dataset']} {line['split']}".strip() + images


def setting_facts(setting: Setting) -> str:
    """One line about weights, images and how they are prepared."""
    line = setting.line
    crop = number(line["crop_pct"])
    facts = (
        f"weights: {line['weights'] or 'unknown'}"
        + (f" (hash {line['weights_hash'][:8]})" if line["weights_hash"] else ""),
        f"images: hash {line['data_hash'][:8] or 'unknown'}",
        f"{line['img_size']} pixels" if line["img_size"] else "",
        f"{line['interpolation']}, crop {crop:g}" if crop is not None else line["interpolation"],
        line["precision"],
        {"skip": "unreadable images left out", "count-wrong": "unreadable images counted as wrong"}.get(
            line["on_error"], ""
        ),
    )
    return "; ".join(filter(None, facts))


def group_title(group: Group) -> str:
    """What was saved and what was trained."""
    saved = "Plans set by hand" if group.budget is None else f"{100 * group.budget:.6g} % fewer FLOPs"
    return (
        f"{saved}, {_TRAINING.get(group.training, f'training: {group.training}')}"
        if group.training
        else saved
    )


def members(setting: Setting, group: Group) -> list[Standing]:
    """The rows of a group's table, marked ones apart: the unreduced model, then the best first."""
    return [*setting.baselines, *group.ranked]


def variant(row: Standing, among: Sequence[Standing]) -> str:
    """In what a row differs from others of its method and options in the same table."""
    same = [
        other.line
        for other in among
        if all(other.line[name] == row.line[name] for name in ("method", "options"))
    ]
    return ", ".join(
        pattern.format(row.line[name])
        for name, pattern in _VARIANTS
        if row.line[name]
        and (len({line[name] for line in same}) > 1 or (name, row.line[name]) in (("protocol", "common"),))
    )


def rank(row: Standing) -> str:
    """The rank; empty for what has none."""
    return "" if row.rank is None else str(row.rank)


def verified(row: Standing) -> str:
    """When a row was confirmed by running it again, and on how many images; empty where it was not."""
    found = row.verified
    if not found or not found.get("confirmed"):
        return ""
    return f"{found.get('date', '')}, {found.get('images', '?')} images"


def notes(row: Standing) -> list[str]:
    """What a reader has to know of a row beside its numbers."""
    line, found = row.line, list(row.marks)
    if row.control:
        found.append("control")
    if row.unbeaten:
        found.append(f"not shown to beat {', '.join(row.unbeaten)}")
    if row.unpaired:
        found.append("ranked by intervals alone (unpaired)")
    if number(line["n_failed"]):
        found.append(
            f"{line['n_failed']} images unreadable, {'left out' if line['on_error'] == 'skip' else 'counted as wrong'}"
        )
    if line["smallest_batch"]:
        found.append(f"batches of {line['smallest_batch']} for lack of memory")
    return found


def cells(row: Standing, among: Sequence[Standing]) -> tuple[str, ...]:
    """A row's cells, one for each of `HEADERS`."""
    line, dense = row.line, row.line["method"] == BASELINE
    reduction = number(line["reduction"])
    about = [text for text in (line["options"], variant(row, among)) if text]
    return (
        rank(row),
        line["method"],
        shown(line, "top1", 2),
        interval(line, "top1"),
        "" if dense else shown(line, "drop", 2),
        shown(line, "gflops", 3),
        "" if reduction is None or dense else f"{100 * reduction:.2f} %",
        shown(line, "images_per_s", 1),
        verified(row),
        "; ".join([*notes(row), *about]),
    )


def shown(line: Line, column: str, digits: int) -> str:
    """A number with so many digits; empty where there is none."""
    value = number(line[column])
    return "" if value is None else f"{value:.{digits}f}"


def interval(line: Line, column: str) -> str:
    """An interval as tables have it."""
    low, high = shown(line, f"{column}_lo", 2), shown(line, f"{column}_hi", 2)
    return f"{low} to {high}" if low and high else ""


def counted(settings: Sequence[Setting]) -> str:
    """One sentence about what a board has."""
    ranked = sum(
        row.rank is not None for setting in settings for group in setting.groups for row in group.ranked
    )
    apart = sum(
        len(setting.apart) + sum(len(group.apart) for group in setting.groups) for setting in settings
    )
    groups = sum(
        any(row.rank is not None for row in group.ranked) for setting in settings for group in setting.groups
    )
    left = f"; {_plural(apart, 'row')} marked and not ranked" if apart else ""
    return f"{_plural(ranked, 'ranked row')} in {_plural(groups, 'group')} that {'compares' if groups == 1 else 'compare'}{left}."


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
