"""Exports of a board: Markdown, LaTeX, CSV with ranks, and timm's two kinds of result files.

timm's `results-*.csv` and `benchmark-*.csv` have one line for each model. Here the name of a row is that of
its model followed by the method, such as `deit_small_patch16_224.fb_in1k+lotm`, so that it can be combined
with timm's own files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from tokred.errors import TokredError
from tokred.leaderboard import cells
from tokred.leaderboard.ranked_row import RankedRow
from tokred.leaderboard.ranking_groups import Setting
from tokred.tables import render
from tokred.tables.render import Table
from tokred.tables.row import BASELINE, COLUMNS, Row, csv_cell
from tokred.utils.text import for_markdown, visible

TIMM_RESULTS = (
    *("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct"),
    "interpolation",
)
TIMM_BENCHMARK = (
    *("model", "infer_img_size", "infer_samples_per_sec", "infer_step_time", "infer_batch_size"),
    *("param_count", "infer_gmacs", "infer_macts"),
)
STANDING = (
    *("rank", "tied", "unpaired", "marks", "controls_unbeaten", "verified", "better_top1", "better_nll"),
)
"""The columns that `csv_text` adds to those of the board; `tied` is the number of others of the same rank."""

_DISTINCTIVE = (
    *("weights_hash", "precision", "device", "batch_size", "seed", "protocol", "stages", "adapter", "split"),
    "data_hash",
)
_CLASSES = {"photodigits": 10}


def markdown(settings: Sequence[Setting], title: str) -> str:
    """The board as a Markdown page, with a table for each group."""
    parts = [f"# {for_markdown(title)}", cells.counted(settings)]
    for setting in settings:
        parts.append(f"## {for_markdown(cells.setting_title(setting))}")
        parts.append(for_markdown(cells.setting_facts(setting)))
        for heading, table in _tables(setting):
            parts += [f"### {for_markdown(heading)}", render.markdown(table).strip()]
    return "\n\n".join(parts) + "\n"


def latex(settings: Sequence[Setting], title: str) -> str:
    """The groups of a board as LaTeX tabulars, each under a comment with its title."""
    parts = [f"% {visible(title)}"]
    for setting in settings:
        parts.append(f"% {visible(cells.setting_title(setting))}: {visible(cells.setting_facts(setting))}")
        for heading, table in _tables(setting):
            parts += [f"% {visible(heading)}", render.latex(table).strip()]
    return "\n".join(parts) + "\n"


def csv_text(settings: Sequence[Setting], title: str) -> str:
    """All columns of all rows with their ranks, in the order of the page."""
    lines = []
    for ranked, tied in _every_row(settings):
        standing = (
            *(ranked.rank, tied, ranked.unpaired, "; ".join(ranked.exclusions), " ".join(ranked.unbeaten)),
            cells.verified(ranked),
            *(" ".join(one.row.method for one in rows) for rows in (ranked.better_top1, ranked.better_nll)),
        )
        lines.append([csv_cell(v) for v in (*(getattr(ranked.row, name) for name in COLUMNS), *standing)])
    return render.csv(Table(headers=(*COLUMNS, *STANDING), rows=lines))


def timm_results(settings: Sequence[Setting], title: str) -> str:
    """Accuracy of all ranked rows in the columns of timm's `results-imagenet.csv`.

    Raises:
        TokredError: all rows are excluded.
    """
    lines = []
    for name, row in _named(settings):
        both = [(top, None if top is None else 100 - top) for top in (row.top1, row.top5)]
        accuracies = [cells.fixed(value, 3) for pair in both for value in pair]
        prepared = (csv_cell(row.crop_pct), row.interpolation)
        lines.append([name, csv_cell(row.img_size), *accuracies, parameters(row), *prepared])
    if not lines:
        reason = "all are excluded, for instance because they are limited; the page of the board says why"
        raise TokredError(f"No row of this board can be exported: {reason}.")
    return render.csv(Table(headers=TIMM_RESULTS, rows=lines))


def timm_benchmark(settings: Sequence[Setting], title: str) -> str:
    """Speed of all rows with measured speed in the columns of timm's `benchmark-infer-*.csv`.

    Raises:
        TokredError: no row has a measured speed.
    """
    lines = []
    for name, row in _named(settings):
        if row.images_per_s is not None:
            speed = (cells.fixed(row.images_per_s, 2), cells.fixed(row.latency_ms, 3))
            size = csv_cell(row.smallest_batch or row.batch_size)
            cost = (parameters(row), cells.fixed(row.gflops, 2), "")
            lines.append([name, csv_cell(row.img_size), *speed, size, *cost])
    if not lines:
        advice = "measure it with tokred compare --bench 5, and add that run"
        raise TokredError(f"No row of this board has a speed to export; {advice}.")
    return render.csv(Table(headers=TIMM_BENCHMARK, rows=lines))


FORMATS: dict[str, Callable[[Sequence[Setting], str], str]] = {
    "timm": timm_results,
    "timm-benchmark": timm_benchmark,
    "csv": csv_text,
    "markdown": markdown,
    "latex": latex,
}


def parameters(row: Row) -> str:
    """Millions of parameters of an unchanged timm model; empty for other rows."""
    if row.adapter or row.unfitted or row.training not in ("", "none"):
        return ""  # a learned method adds parameters
    if row.control and row.method != "random":
        return ""  # a dense control is another model
    classes = 0 if row.weights.startswith("timm ") else _CLASSES.get(row.dataset)
    return "" if classes is None else _millions(row.model, classes)


@cache
def _millions(model: str, classes: int) -> str:
    import torch  # not needed by the other formats

    from tokred.models import zoo

    try:
        with torch.device("meta"):
            empty = zoo.build(model, classes or None)
    except TokredError:
        return ""  # a model that this version of timm does not have
    return f"{sum(parameter.numel() for parameter in empty.parameters()) / 1e6:.2f}"


def _tables(setting: Setting) -> Iterator[tuple[str, Table]]:
    """The tables of a setting with their headings."""
    parts = []
    if setting.apart or not setting.groups:
        parts.append(("The dense model", [*setting.baselines, *setting.apart]))
    for group in setting.groups:
        heading, ranked = cells.group_title(group), [*setting.baselines, *group.ranked]
        parts += [(heading, ranked)] if ranked or not group.apart else []
        parts += [(f"Not ranked: {heading}", group.apart)] if group.apart else []
    for heading, rows in parts:
        texts = [cells.cells(ranked, rows) for ranked in rows]
        yield heading, Table(headers=cells.HEADERS, rows=texts, words=cells.WORDS)


def _every_row(settings: Sequence[Setting]) -> Iterator[tuple[RankedRow, int | None]]:
    """Every row once, with the number of others that share its rank."""
    for setting in settings:
        yield from ((ranked, None) for ranked in (*setting.baselines, *setting.apart))
        seen = set[RankedRow]()  # a control can be in several groups
        for group in setting.groups:
            count = Counter(ranked.rank for ranked in group.ranked)
            for ranked in (*group.ranked, *group.apart):
                if ranked not in seen:
                    yield ranked, None if ranked.rank is None else count[ranked.rank] - 1
                seen.add(ranked)


def _named(settings: Sequence[Setting]) -> Iterator[tuple[str, Row]]:
    """The ranked rows with unique names, which contain the budget if there are several."""
    rows = [ranked.row for ranked, _ in _every_row(settings) if not ranked.exclusions]
    several = len({row.budget for row in rows if row.budget is not None}) > 1
    parts = [_name_parts(row, several) for row in rows]
    for depth in range(2, max(map(len, parts), default=2) + 1):
        count = Counter("".join(part[:depth]) for part in parts)
        parts = [part if count["".join(part[:depth])] > 1 else part[:depth] for part in parts]
    seen: Counter[str] = Counter()
    for part, row in zip(parts, rows, strict=True):
        name = visible("".join(part))
        seen[name] += 1
        yield f"{name}+{seen[name]}" if seen[name] > 1 else name, row


def _name_parts(row: Row, with_budget: bool) -> tuple[str, ...]:
    """The parts of a row's name, from general to specific."""
    from tokred.models import zoo

    model = zoo.ALIASES.get(row.model, row.model)
    if row.weights.startswith("timm "):
        model = row.weights.removeprefix("timm ")
    values = [csv_cell(getattr(row, name))[:8] for name in _DISTINCTIVE]
    setting = [f"+{value}" if value else "" for value in values]
    if row.method == BASELINE:
        return (model, "", *setting)
    method, budget = f"+{row.method}", "" if row.budget is None else f"@{csv_cell(row.budget)}"
    named = (method + budget,) if with_budget else (method, budget)
    return (model, *named, f"+{row.training}", f"+{row.options.replace(' ', ',')}", *setting)
