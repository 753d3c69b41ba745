"""A board for others: Markdown, LaTeX, a CSV with the ranks in it, and timm's two kinds of result files.

timm's `results-*.csv` and `benchmark-*.csv` have one line a model. A row here is one under the name of its model with the method behind it,
such as `deit_small_patch16_224.fb_in1k+lotm`, so that it can be put beside timm's own files. What is not measured here is empty.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

from tokred.errors import TokredError
from tokred.leaderboard import cells
from tokred.leaderboard.evidence import Line, number
from tokred.leaderboard.ranking_groups import Setting, Standing
from tokred.tables import render
from tokred.tables.render import Table
from tokred.tables.row import BASELINE, COLUMNS
from tokred.utils.text import for_markdown, visible

TIMM_RESULTS = (
    "model",
    "img_size",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "param_count",
    "crop_pct",
    "interpolation",
)
TIMM_BENCHMARK = ("model", "infer_img_size", "infer_samples_per_sec", "infer_step_time", "infer_batch_size", "param_count",
                  "infer_gmacs", "infer_macts")  # fmt: skip
STANDING = ("rank", "tied", "unpaired", "marks", "controls_unbeaten", "verified")
"""What `csv_text` adds to the board's own columns; `tied` counts the others of the same rank."""


def markdown(settings: Sequence[Setting], title: str) -> str:
    """The board as a Markdown page, a table for each group."""
    parts = [f"# {for_markdown(title)}", cells.counted(settings)]
    for setting in settings:
        parts += [
            f"## {for_markdown(cells.setting_title(setting))}",
            for_markdown(cells.setting_facts(setting)),
        ]
        for heading, rows in _tables(setting):
            parts += [f"### {for_markdown(heading)}", render.markdown(_drawn(rows)).strip()]
    return "\n\n".join(parts) + "\n"


def latex(settings: Sequence[Setting], title: str) -> str:
    """The board's groups as LaTeX tabulars, each under a comment that names it."""
    parts = [f"% {visible(title)}"]
    for setting in settings:
        parts.append(f"% {visible(cells.setting_title(setting))}: {visible(cells.setting_facts(setting))}")
        for heading, rows in _tables(setting):
            parts += [f"% {visible(heading)}", render.latex(_drawn(rows)).strip()]
    return "\n".join(parts) + "\n"


def _drawn(rows: Sequence[Standing]) -> Table:
    words = frozenset(range(len(cells.HEADERS))) - frozenset(cells.NUMERIC)
    return Table(headers=cells.HEADERS, rows=[cells.cells(row, rows) for row in rows], words=words)


def csv_text(settings: Sequence[Setting], title: str) -> str:
    """All columns of all rows, and where each stands, in the order of the page."""
    lines = []
    for row, tied in _standings(settings):
        about = (
            cells.rank(row),
            tied,
            row.unpaired,
            "; ".join(row.marks),
            " ".join(row.unbeaten),
            cells.verified(row),
        )
        lines.append(
            [
                *(row.line[name] for name in COLUMNS),
                *(str(cell).lower() if isinstance(cell, bool) else cell for cell in about),
            ]
        )
    return _csv([*COLUMNS, *STANDING], lines)


def timm_results(settings: Sequence[Setting], title: str) -> str:
    """Accuracy in the columns of timm's `results-imagenet.csv`; marked rows are left out.

    Raises:
        TokredError: all rows are marked.
    """
    lines = []
    for name, line in _named(settings):
        top1, top5 = number(line["top1"]), number(line["top5"])
        errors = [_fixed(None if value is None else 100 - value, 3) for value in (top1, top5)]
        lines.append(
            [name, line["img_size"], _fixed(top1, 3), errors[0], _fixed(top5, 3), errors[1], *_prepared(line)]
        )
    if not lines:
        raise TokredError(
            "No row of this board can be exported: all are marked, for instance as limited; see its page for why."
        )
    return _csv(TIMM_RESULTS, lines)


def _prepared(line: Line) -> list[str]:
    return [parameters(line), line["crop_pct"], line["interpolation"]]


def timm_benchmark(settings: Sequence[Setting], title: str) -> str:
    """Speed in the columns of timm's `benchmark-infer-*.csv`, for rows where it was measured.

    Raises:
        TokredError: it was not in any row.
    """
    lines = []
    for name, line in _named(settings):
        if line["images_per_s"]:
            speed = (cells.shown(line, "images_per_s", 2), cells.shown(line, "latency_ms", 3))
            size = line["smallest_batch"] or line["batch_size"]
            lines.append(
                [name, line["img_size"], *speed, size, parameters(line), cells.shown(line, "gflops", 2), ""]
            )
    if not lines:
        raise TokredError(
            "No row of this board has a speed to export; measure it with tokred compare --bench 5, and add that run."
        )
    return _csv(TIMM_BENCHMARK, lines)


FORMATS: dict[str, Callable[[Sequence[Setting], str], str]] = {
    "timm": timm_results,
    "timm-benchmark": timm_benchmark,
    "csv": csv_text,
    "markdown": markdown,
    "latex": latex,
}


def parameters(line: Line) -> str:
    """Millions of parameters, of a model that is timm's with nothing added to it; empty where a row does not tell."""
    if line["adapter"] or line["unfitted"] == "true" or line["training"] not in ("", "none"):
        return ""  # a learned method adds its own
    if line["control"] == "true" and line["method"] != "random":
        return ""  # another model stands behind it
    classes = 0 if line["weights"].startswith("timm ") else _CLASSES.get(line["dataset"])
    return "" if classes is None else _counted(line["model"], classes)


_CLASSES = {"photodigits": 10}


@cache
def _counted(model: str, classes: int) -> str:
    import torch  # only here: the other formats need none

    from tokred.models import zoo

    try:
        with torch.device("meta"):
            made = zoo.build(model, classes or None)
    except TokredError:
        return ""  # a model of another version of timm
    return f"{sum(parameter.numel() for parameter in made.parameters()) / 1e6:.2f}"


def _tables(setting: Setting) -> Iterator[tuple[str, list[Standing]]]:
    """The tables of a setting under their headings."""
    if setting.apart or not setting.groups:
        yield "The unreduced model", [*setting.baselines, *setting.apart]
    for group in setting.groups:
        heading, ranked = cells.group_title(group), cells.members(setting, group)
        if ranked or not group.apart:
            yield heading, ranked
        if group.apart:
            yield f"Not ranked: {heading}", group.apart


def _standings(settings: Sequence[Setting]) -> Iterator[tuple[Standing, int | str]]:
    """Every row once, with the number of others that share its rank."""
    for setting in settings:
        seen: set[int] = set()
        yield from ((row, "") for row in (*setting.baselines, *setting.apart))
        for group in setting.groups:
            count = Counter(row.rank for row in group.ranked)
            for row in (*group.ranked, *group.apart):
                if id(row) not in seen:
                    yield row, "" if row.rank is None else count[row.rank] - 1
                seen.add(id(row))


def _named(settings: Sequence[Setting]) -> Iterator[tuple[str, Line]]:
    """The rows that nothing is wrong with under names that each occur once: the budget is in them where it tells two apart."""
    rows = [row.line for row, _ in _standings(settings) if not row.marks]
    several = len({line["budget"] for line in rows if line["budget"]}) > 1
    parts = [_parts(line) for line in rows]
    parts = [(part[0], "".join(part[1:3]), *part[3:]) if several else part for part in parts]
    for depth in range(2, max(map(len, parts), default=2) + 1):
        names = [_join(part[:depth]) for part in parts]
        double = {name for name, count in Counter(names).items() if count > 1}
        parts = [part if name in double else part[:depth] for part, name in zip(parts, names, strict=True)]
    seen: Counter[str] = Counter()
    for part, line in zip(parts, rows, strict=True):
        name = visible(_join(part))
        seen[name] += 1
        yield f"{name}+{seen[name]}" if seen[name] > 1 else name, line


def _parts(line: Line) -> tuple[str, ...]:
    """What a row is called, in ever more detail."""
    model = (
        line["weights"].removeprefix("timm ")
        if line["weights"].startswith("timm ")
        else _timm_name(line["model"])
    )
    if line["method"] == BASELINE:
        return (model, "", "", "", "", *_settings(line))
    options = f"+{line['options'].replace(' ', ',')}"
    return (
        model,
        f"+{line['method']}",
        f"@{line['budget']}" if line["budget"] else "",
        f"+{line['training']}",
        options,
        *_settings(line),
    )


def _settings(line: Line) -> tuple[str, ...]:
    columns = (
        "weights_hash",
        "precision",
        "device",
        "batch_size",
        "seed",
        "protocol",
        "stages",
        "adapter",
        "split",
        "data_hash",
    )
    return tuple(f"+{line[name][:8]}" if line[name] else "" for name in columns)


def _join(parts: Iterable[str]) -> str:
    return "".join(parts)


def _timm_name(model: str) -> str:
    from tokred.models import zoo

    return zoo.ALIASES.get(model, model)


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
