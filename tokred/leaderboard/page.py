"""A board as one self-contained HTML page, which asks nothing of other hosts."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokred.leaderboard import cells
from tokred.leaderboard.ranking_groups import RankedRow, Setting
from tokred.report.page import ASSETS
from tokred.tables.row import BASELINE
from tokred.utils.text import visible

_ASSETS = Path(__file__).parent / "assets"


def page(settings: Sequence[Setting], title: str) -> str:
    """The page, as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_ASSETS, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    script = _shared("script.js", "board.js")
    return environment.get_template("board.html.j2").render(
        title=title,
        counted=cells.counted(settings),
        style=_shared("style.css", "board.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        settings=[_setting(f"t{place}", setting) for place, setting in enumerate(settings, start=1)],
    )


def _shared(report: str, own: str) -> str:
    """The report's file, which gives all pages one look, and the board's additions to it."""
    return "".join(file.read_text(encoding="utf-8") for file in (ASSETS / report, _ASSETS / own))


def _visible(value: Any) -> Any:
    """Text without characters that a reader cannot see; markup stays as it is."""
    return visible(value) if type(value) is str else value


def _setting(name: str, setting: Setting) -> dict[str, Any]:
    """The template's view of a setting."""
    groups = [
        {
            "title": cells.group_title(group),
            **_part(f"{name}-{place}", setting, cells.members(setting, group), group.apart),
        }
        for place, group in enumerate(setting.groups, start=1)
    ]
    part = _part(name, setting, setting.baselines, setting.apart)
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
    """The template's view of a table and of the rows that are excluded from it."""
    every = (*rows, *apart)
    return {
        "id": name,
        "timed": any(one.row.images_per_s is not None and one.row.method != BASELINE for one in every),
        "verified": any(cells.verified(one) for one in every),
        "rows": _lines(setting, rows),
        "apart": _lines(setting, apart),
    }


def _lines(setting: Setting, rows: Sequence[RankedRow]) -> list[dict[str, Any]]:
    """The template's view of each row."""
    scale, before, lines = _scale(setting, rows), None, []
    for ranked in rows:
        row, texts = ranked.row, (ranked.row.options, cells.variant(ranked, rows))
        opens = None not in (ranked.rank, before) and ranked.rank != before
        before = before if ranked.rank is None else ranked.rank
        kind = "control" if row.control else "row"
        lines.append(
            {
                "kind": "baseline" if row.method == BASELINE else kind,
                "opens": opens,
                "cells": dict(zip(cells.HEADERS, cells.cells(ranked, rows), strict=True)),
                "options": "; ".join(filter(None, texts)),
                "flags": [
                    text for text in cells.notes(ranked) if text not in (*ranked.exclusions, "control")
                ],
                "marks": ranked.exclusions,
                "sort": {name: value for name, value in _sort_keys(ranked).items() if value is not None},
                "bar": _bar(ranked, scale),
                "dense": scale and _place(scale, [one.top1 for one in setting.baselines]),
            }
        )
    return lines


def _sort_keys(ranked: RankedRow) -> dict[str, float | str | None]:
    """The value by which each column is sorted; a missing one is last, whichever way."""
    row = ranked.row
    numbers = (row.top1, row.top1, row.drop, row.gflops, row.reduction, row.images_per_s)
    finite = [value if value is not None and math.isfinite(value) else None for value in numbers]
    return dict(
        zip(cells.HEADERS, (ranked.rank, row.method, *finite, cells.verified(ranked), None), strict=True)
    )


def _scale(setting: Setting, rows: Sequence[RankedRow]) -> tuple[float, float] | None:
    """The ends of the strip on which intervals are drawn; None if they are no percentages."""
    measured = [one for one in (*setting.baselines, *rows) if one.row.top1 is not None]
    ends = [end for one in measured for end in (*one.interval, one.top1)]
    if not ends or min(ends) < 0 or max(ends) > 100 or min(ends) == max(ends):
        return None
    margin = 0.03 * (max(ends) - min(ends))
    return min(ends) - margin, max(ends) + margin


def _place(scale: tuple[float, float], values: Sequence[float]) -> list[float]:
    low, high = scale
    return [round(100 * (value - low) / (high - low), 2) for value in values]


def _bar(ranked: RankedRow, scale: tuple[float, float] | None) -> list[float] | None:
    """Where a row's interval begins, its top-1 is, and its interval ends, in per cent of the strip."""
    if scale is None or not cells.fixed(ranked.row.top1, 2):
        return None
    low, high = ranked.interval
    return _place(scale, [low, ranked.top1, high])
