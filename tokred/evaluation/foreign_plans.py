"""Plans of foreign checkpoints: at their own token counts if these are fixed, else matched to the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import Match, at_knob, match
from tokred.core.plan import Plan, stages_text
from tokred.core.schedule import UNIFORM, Layers, Schedule
from tokred.errors import TokredError
from tokred.models.adapters import Adapter
from tokred.models.foreign import Checkpoint
from tokred.utils.text import spaced


@dataclass
class Nearest:
    """Adapters for one budget, with at most one foreign checkpoint for each method.

    Attributes:
        adapters: all adapters except foreign checkpoints, and the nearest checkpoint of each method.
        matches: plans of these checkpoints, by method.
        refused: errors of checkpoints without a plan, by method.
    """

    adapters: list[Adapter]
    matches: dict[str, Match] = field(default_factory=dict)
    refused: dict[str, TokredError] = field(default_factory=dict)


def nearest(
    adapters: Iterable[Adapter],
    costs: CostTable,
    budget: float,
    options: Mapping[str, Mapping[str, Any]],
    stages: Layers | None = None,
    schedule: Schedule = UNIFORM,
) -> Nearest:
    """Choose for each method the checkpoint that was trained nearest to the budget.

    Args:
        adapters: adapters of all kinds.
        costs: costs of the dense model.
        budget: fraction of FLOPs to save.
        options: options set by the user, by method.
        stages: layers set by the user.
        schedule: how the user divides the budget among the stages.
    """
    adapters = list(adapters)
    choice = Nearest([adapter for adapter in adapters if not isinstance(adapter, Checkpoint)])
    by_method: dict[str, list[Checkpoint]] = {}
    for adapter in adapters:
        if isinstance(adapter, Checkpoint):
            by_method.setdefault(adapter.card["method"], []).append(adapter)
    for method, checkpoints in by_method.items():
        checkpoint = checkpoints[0]
        if len(checkpoints) > 1:
            checkpoint = min(checkpoints, key=lambda one: _distance(one, costs, budget))
        choice.adapters.append(checkpoint)
        try:
            chosen = options.get(method, {})
            choice.matches[method] = plan_of(checkpoint, costs, budget, chosen, stages, schedule)
        except TokredError as error:
            choice.refused[method] = error
    return choice


def plan_of(
    checkpoint: Checkpoint,
    costs: CostTable,
    budget: float,
    options: Mapping[str, Any],
    stages: Layers | None = None,
    schedule: Schedule = UNIFORM,
) -> Match:
    """The plan of a checkpoint: at its own token counts if they are fixed, else matched to the budget.

    Where counts depend on the image it is the plan at the keep rate of its training.

    Raises:
        TokredError: it belongs to another model, the user set other layers or options, or the budget is
            unreachable.
    """
    checkpoint.check(costs.backbone)
    card, own = checkpoint.card, tuple(checkpoint.card["stages"])
    if stages is not None and stages != own:
        raise TokredError(
            f"{checkpoint.path} was trained at layers {spaced(own)}, not at {stages_text(stages)}; leave "
            "out --stages."
        )
    complete = {**card["options"], **options}
    if registry.get(card["method"]).adaptive():  # from its own keep rate on, calibration meets the budget
        rate = card["rates"][0] if card["rates"] else registry.get(card["method"]).threshold
        return at_knob(costs, card["method"], rate, stages=own, options=complete)
    if not checkpoint.fixed:
        return match(costs, card["method"], budget, stages=own, options=complete, schedule=schedule)
    if not schedule.uniform:
        raise TokredError(
            f"{checkpoint.path} has token counts of its own, so the schedule {schedule.name} is not for it; "
            "leave out --schedule."
        )
    rates = card["rates"]
    plan = Plan(card["method"], own, tuple(card["tokens"]), complete, rates[0] if len(rates) == 1 else None)
    return Match(plan, costs.plan(plan), costs.reducers(plan), costs.dense, budget, costs.n)


def _distance(checkpoint: Checkpoint, costs: CostTable, budget: float) -> tuple[bool, float]:
    """Distance of a checkpoint's own saving from the budget; checkpoints of another model come last."""
    try:
        checkpoint.check(costs.backbone)
    except TokredError:
        return True, 0.0
    tokens = checkpoint.own_tokens(costs.n)
    if tokens is None:
        return False, 1.0
    card = checkpoint.card
    plan = Plan(card["method"], tuple(card["stages"]), tokens, dict(card["options"]))
    return False, abs(1 - costs.plan(plan) / costs.dense - budget)
