"""A board as one self-contained HTML page. It asks nothing of another host, and a policy in its head forbids that."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokred.leaderboard import cells
from tokred.leaderboard.evidence import number
from tokred.leaderboard.ranking_groups import Group, Setting, Standing
from tokred.report.page import ASSETS
from tokred.tables.row import BASELINE
from tokred.utils.text import visible

_ASSETS = Path(__file__).parent / "assets"


def page(settings: Sequence[Setting], title: str) -> str:
    """The page, as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_ASSETS, encoding="utf-8")
    environment = Environment(
        autoescape=True,
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    style, script = (_shared("style.css", "board.css"), _shared("script.js", "board.js"))
    return environment.get_template("board.html.j2").render(
        title=title,
        counted=cells.counted(settings),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        settings=[_setting(place, setting) for place, setting in enumerate(settings, start=1)],
    )


def _shared(report: str, own: str) -> str:
    """The report's file, which gives all pages one look, and what a board adds to it."""
    files = (ASSETS / report, _ASSETS / own)
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _seen(value: Any) -> Any:
    """Text of others with nothing in it that a reader cannot see; what is markup already stays as it is."""
    return visible(value) if type(value) is str else value


def _setting(place: int, setting: Setting) -> dict[str, Any]:
    """What the template shows of a setting."""
    groups = [
        _group(f"t{place}-{number_}", setting, group) for number_, group in enumerate(setting.groups, start=1)
    ]
    return {
        "id": f"t{place}",
        "title": cells.setting_title(setting),
        "facts": cells.setting_facts(setting),
        "timed": False,
        "verified": any(cells.verified(row) for row in (*setting.baselines, *setting.apart)),
        "groups": groups,
        "baselines": [] if groups else _lines(setting, setting.baselines),
        "apart": _lines(setting, setting.apart),
    }


def _group(name: str, setting: Setting, group: Group) -> dict[str, Any]:
    rows = cells.members(setting, group)
    timed = any(row.line["images_per_s"] for row in (*group.ranked, *group.apart))
    return {
        "id": name,
        "title": cells.group_title(group),
        "timed": timed,
        "verified": any(cells.verified(row) for row in (*rows, *group.apart)),
        "rows": _lines(setting, rows),
        "apart": _lines(setting, group.apart),
    }


def _lines(setting: Setting, rows: Sequence[Standing]) -> list[dict[str, Any]]:
    """What the template shows of each row."""
    scale, before = _scale(setting, rows), None
    made = []
    for row in rows:
        dense = row.line["method"] == BASELINE
        kind = "baseline" if dense else "control" if row.control else "row"
        opens = row.rank is not None and before is not None and row.rank != before
        before = row.rank if row.rank is not None else before
        cell = dict(zip(cells.HEADERS, cells.cells(row, rows), strict=True))
        about = "; ".join(filter(None, (row.line["options"], cells.variant(row, rows))))
        flags = [text for text in cells.notes(row) if text not in row.marks and text != "control"]
        sort = {
            header: value
            for header, value in zip(cells.HEADERS, _values(row), strict=True)
            if value is not None
        }
        made.append(
            {
                "kind": kind,
                "opens": opens,
                "cells": cell,
                "options": about,
                "flags": flags,
                "marks": row.marks,
                "sort": sort,
            }
            | {
                "bar": _bar(row, scale),
                "dense": scale and _place(scale, [base.top1 for base in setting.baselines]),
            }
        )
    return made


def _values(row: Standing) -> tuple[float | str | None, ...]:
    """What each column is sorted by; a missing number is last, whichever way."""
    line = row.line
    numbers = (number(line[name]) for name in ("top1", "top1", "drop", "gflops", "reduction", "images_per_s"))
    return (row.rank, line["method"], *numbers, cells.verified(row), None)


def _scale(setting: Setting, rows: Sequence[Standing]) -> tuple[float, float] | None:
    """The ends of the strip on which intervals are drawn."""
    ends = [
        end for row in (*setting.baselines, *rows) if row.line["top1"] for end in (*row.interval, row.top1)
    ]
    if not ends or min(ends) < 0 or max(ends) > 100 or min(ends) == max(ends):
        return None
    margin = 0.03 * (max(ends) - min(ends))
    return min(ends) - margin, max(ends) + margin


def _place(scale: tuple[float, float], values: Sequence[float]) -> list[float]:
    low, high = scale
    return [round(100 * (value - low) / (high - low), 2) for value in values]


def _bar(row: Standing, scale: tuple[float, float] | None) -> list[float] | None:
    """Where a row's interval begins, its top-1 is, and its interval ends, in per cent of the strip."""
    if scale is None or number(row.line["top1"]) is None:
        return None
    low, high = row.interval
    return _place(scale, [low, row.top1, high])
