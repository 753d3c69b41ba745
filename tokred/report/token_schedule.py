"""The number of patch tokens after each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokred.report.run_data import RunData
from tokred.tables.row import BASELINE, Row


@dataclass(frozen=True)
class Schedule:
    """The tokens of one row.

    Attributes:
        name: the row's name on the page.
        tokens: numbers of tokens after each layer; None where the number at the start is unknown.
        changed: whether each layer is a stage.
        share: fraction of the dense model's tokens in fifths, from 0 to 5, for the shade.
    """

    name: str
    tokens: list[int | None]
    changed: list[bool]
    share: list[int]


def schedules(data: RunData) -> list[Schedule]:
    """The schedules of all rows that have one, the dense model's first; empty where no row reduces."""
    plans = {id(row): _plan(row) for row in data.rows}
    depth = int(data.run.get("depth") or max((layer for plan in plans.values() for layer in plan), default=0))
    if not any(plans.values()) or not depth:
        return []
    patches = _patches(data)
    shown = [row for row in data.ordered if plans[id(row)] or (row.method == BASELINE and patches)]
    return [_schedule(data.called(row), plans[id(row)], depth, patches) for row in shown]


def _plan(row: Row) -> dict[int, int]:
    """Tokens left after each stage, by layer."""
    layers, tokens = (
        [int(part) for part in text.split() if part.isdecimal()] for text in (row.stages, row.tokens)
    )
    return dict(zip(layers, tokens, strict=True)) if len(layers) == len(tokens) else {}


def _patches(data: RunData) -> int | None:
    """Patch tokens of the dense model."""
    if data.run.get("patches"):
        return int(data.run["patches"])
    return int(math.prod(data.maps["grid"].tolist())) if "grid" in data.maps else None


def _schedule(name: str, plan: dict[int, int], depth: int, patches: int | None) -> Schedule:
    tokens, now = [], patches
    for layer in range(1, depth + 1):
        now = plan.get(layer, now)
        tokens.append(now)
    most = patches or max((count for count in tokens if count is not None), default=1)
    share = [0 if count is None else max(1, math.ceil(5 * count / most)) if count else 0 for count in tokens]
    return Schedule(name, tokens, [layer in plan for layer in range(1, depth + 1)], share)
