"""The number of patch tokens after each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokred.report.run_data import RunData
from tokred.tables.row import BASELINE, Row


@dataclass(frozen=True)
class Schedule:
    """The number of tokens of one row after each layer.

    Attributes:
        name: the row's name on the page.
        tokens: numbers of tokens after each layer; None before the first stage if that number is unknown.
        changed: whether each layer is a stage.
        share: fraction of the dense model's tokens in fifths, from 0 to 5, for the shade.
    """

    name: str
    tokens: list[int | None]
    changed: list[bool]
    share: list[int]


def schedules(data: RunData) -> list[Schedule]:
    """The schedules of all rows that have stages, after that of the dense model; empty if no row has any."""
    plans = [(row, _plan(row)) for row in data.ordered]
    stages = [layer for _, plan in plans for layer in plan]
    if not stages:
        return []
    depth = int(data.about.get("depth") or max(stages))
    patches = int(data.about.get("patches") or np.prod(data.maps.get("grid", 0)))
    shown = [(row, plan) for row, plan in plans if plan or (row.method == BASELINE and patches)]
    return [_schedule(data.called(row), plan, depth, patches or None) for row, plan in shown]


def _plan(row: Row) -> dict[int, int]:
    """Tokens left after each stage, by layer."""
    layers, tokens = (
        [int(part) for part in text.split() if part.isdecimal()] for text in (row.stages, row.tokens)
    )
    return dict(zip(layers, tokens, strict=True)) if len(layers) == len(tokens) else {}


def _schedule(name: str, plan: dict[int, int], depth: int, patches: int | None) -> Schedule:
    layers, tokens = range(1, depth + 1), [patches]
    for layer in layers:
        tokens.append(plan.get(layer, tokens[-1]))
    most = patches or max(filter(None, tokens), default=1)
    share = [math.ceil(5 * (count or 0) / most) for count in tokens[1:]]
    return Schedule(name, tokens[1:], [layer in plan for layer in layers], share)
