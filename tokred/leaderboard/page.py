"""A board as one self-contained HTML page, which requests nothing from other hosts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokred.leaderboard import cells
from tokred.leaderboard.ranked_row import RankedRow
from tokred.leaderboard.ranking_groups import Setting
from tokred.report import template
from tokred.tables.row import BASELINE

_ASSETS = Path(__file__).parent / "assets"
_Strip = Callable[[Sequence[float]], list[float]]


def page(settings: Sequence[Setting], title: str) -> str:
    """The page as HTML, in the style of a report."""
    return template.render(
        _ASSETS / "board.html.j2",
        styles=[template.ASSETS / "style.css", _ASSETS / "board.css"],
        scripts=[template.ASSETS / "script.js", _ASSETS / "board.js"],
        title=title,
        counted=cells.counted(settings),
        settings=[_setting(f"t{place}", setting) for place, setting in enumerate(settings, start=1)],
    )


def _setting(name: str, setting: Setting) -> dict[str, Any]:
    """The variables of the template for a setting."""
    part = _part(name, setting, setting.baselines, setting.apart)
    groups = []
    for place, group in enumerate(setting.groups, start=1):
        rows = [*setting.baselines, *group.ranked]
        view = _part(f"{name}-{place}", setting, rows, group.apart)
        groups.append({**view, "title": cells.group_title(group)})
    return {
        **part,
        "title": cells.setting_title(setting),
        "facts": cells.setting_facts(setting),
        "timed": False,
        "groups": groups,
        "baselines": [] if groups else part["rows"],
    }


def _part(
    name: str, setting: Setting, rows: Sequence[RankedRow], apart: Sequence[RankedRow]
) -> dict[str, Any]:
    """The variables of the template for a table and the rows excluded from it."""
    every = (*rows, *apart)
    return {
        "id": name,
        "timed": any(one.row.images_per_s is not None and one.row.method != BASELINE for one in every),
        "verified": any(cells.verified(one) for one in every),
        "rows": _lines(setting, rows),
        "apart": _lines(setting, apart),
    }


def _lines(setting: Setting, rows: Sequence[RankedRow]) -> list[dict[str, Any]]:
    """The variables of the template for each row."""
    strip, before, lines = _strip(setting, rows), None, []
    for ranked in rows:
        row, (low, high) = ranked.row, ranked.interval
        opens = None not in (ranked.rank, before) and ranked.rank != before
        before = before if ranked.rank is None else ranked.rank
        kind = "control" if row.control else "row"
        lines.append(
            {
                "kind": "baseline" if row.method == BASELINE else kind,
                "opens": opens,
                "cells": dict(zip(cells.HEADERS, cells.cells(ranked, rows), strict=True)),
                "options": cells.options(ranked, rows),
                "better": cells.better(ranked),
                "flags": cells.flags(ranked),
                "marks": ranked.exclusions,
                "sort": _sort_keys(ranked),
                "bar": strip([low, ranked.top1, high]) if strip and cells.fixed(row.top1, 2) else None,
                "dense": strip([one.top1 for one in setting.baselines]) if strip else [],
            }
        )
    return lines


def _sort_keys(ranked: RankedRow) -> dict[str, float]:
    """The values by which columns are sorted; a missing one comes last in either direction."""
    row = ranked.row
    keys = {"Rank": ranked.rank, "Top-1 (%)": row.top1, "Drop": row.drop, "NLL rise": row.nll_rise}
    keys |= {"FLOPs (G)": row.gflops, "Reduction": row.reduction, "Images/s": row.images_per_s}
    return {name: key for name, key in keys.items() if key is not None and math.isfinite(key)}


def _strip(setting: Setting, rows: Sequence[RankedRow]) -> _Strip | None:
    """A function from values to positions in per cent on the strip of intervals; None without percentages."""
    with_top1 = [one for one in (*setting.baselines, *rows) if one.row.top1 is not None]
    ends = [end for one in with_top1 for end in (*one.interval, one.top1)]
    if not ends or min(ends) < 0 or max(ends) > 100 or min(ends) == max(ends):
        return None
    margin = 0.03 * (max(ends) - min(ends))
    low, high = min(ends) - margin, max(ends) + margin
    return lambda values: [round(100 * (value - low) / (high - low), 2) for value in values]
