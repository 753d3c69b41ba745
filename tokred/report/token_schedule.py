"""How many patch tokens each method has left after each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokred.report.run_data import Material
from tokred.tables.row import BASELINE, Row


@dataclass(frozen=True)
class Schedule:
    """One row's tokens.

    Attributes:
        name: as the page calls it.
        tokens: after each layer; None where the files do not say with how many the model begins.
        changed: whether the layer is one of its stages.
        share: of the unreduced model's tokens, in fifths from 0 to 5, for the shade.
    """

    name: str
    tokens: list[int | None]
    changed: list[bool]
    share: list[int]


def schedules(material: Material) -> list[Schedule]:
    """The schedules of all rows that have one, the unreduced model's first; none where no row reduces."""
    plans = {id(row): _plan(row) for row in material.rows}
    depth = int(
        material.run.get("depth") or max((layer for plan in plans.values() for layer in plan), default=0)
    )
    if not any(plans.values()) or not depth:
        return []
    patches = _patches(material)
    found = []
    for row in material.ordered:
        plan = plans[id(row)]
        if plan or (row.method == BASELINE and patches):
            found.append(_schedule(material.called(row), plan, depth, patches))
    return found


def _plan(row: Row) -> dict[int, int]:
    """Tokens left after each stage, by layer."""
    layers, tokens = (
        [int(part) for part in text.split() if part.isdecimal()] for text in (row.stages, row.tokens)
    )
    return dict(zip(layers, tokens, strict=True)) if len(layers) == len(tokens) else {}


def _patches(material: Material) -> int | None:
    """Patch tokens of the unreduced model."""
    if material.run.get("patches"):
        return int(material.run["patches"])
    return int(math.prod(material.maps["grid"].tolist())) if "grid" in material.maps else None


def _schedule(name: str, plan: dict[int, int], depth: int, patches: int | None) -> Schedule:
    tokens, now = [], patches
    for layer in range(1, depth + 1):
        now = plan.get(layer, now)
        tokens.append(now)
    most = patches or max((count for count in tokens if count is not None), default=1)
    share = [0 if count is None else max(1, math.ceil(5 * count / most)) if count else 0 for count in tokens]
    return Schedule(name, tokens, [layer in plan for layer in range(1, depth + 1)], share)
