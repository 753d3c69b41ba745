"""`match`: the plan of a method that meets a FLOP budget.

A budget is met by the token counts that `Search` finds, at most `TOLERANCE` under it and never over it. Plans
at given token counts or at a value of a method's knob need no search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.options import complete_options
from tokred.core.plan import Plan, Protocol, resolve_stages, uniform_counts
from tokred.core.reducer import Reducer
from tokred.core.schedule import UNIFORM, Layers, Schedule
from tokred.core.search import DecreasingSearch, Search
from tokred.errors import TokredError, UnknownName, Unreachable
from tokred.utils.text import spaced


@dataclass(frozen=True)
class Match:
    """A plan and what it costs.

    Attributes:
        plan: tokens kept at each stage, and the uniform knob that it started from.
        flops: multiply-accumulates of one image.
        reducer_flops: FLOPs of the reducers alone.
        dense_flops: FLOPs of the dense model.
        budget: the reduction asked for, a fraction; None of a plan that was made at a knob or token counts.
        patches: patch tokens before the first stage.
    """

    plan: Plan
    flops: int
    reducer_flops: int
    dense_flops: int
    budget: float | None
    patches: int

    @property
    def reduction(self) -> float:
        """Fraction of the dense model's FLOPs that the plan saves."""
        return 1 - self.flops / self.dense_flops

    @property
    def gap(self) -> float:
        """Fraction saved beyond the budget; within `TOLERANCE` unless no token counts come closer."""
        return 0.0 if self.budget is None else self.reduction - self.budget

    @property
    def knob_name(self) -> str:
        """What `knob` is; "removed" for all plans that are not uniform."""
        return "removed" if self.plan.knob is None else self.plan.reducer.knob

    @property
    def knob(self) -> str:
        """The knob as tables print it: tokens removed at each stage, or the keep rate of the uniform plan."""
        if self.knob_name != "removed":
            return f"{self.plan.knob:.4g}"
        removed = [before - after for before, after in pairwise((self.patches, *self.plan.tokens))]
        return " ".join(map(str, removed if len(set(removed)) > 1 else removed[:1]))


def match(
    costs: CostTable,
    method: str,
    budget: float,
    *,
    protocol: Protocol = "native",
    stages: Layers | None = None,
    options: Mapping[str, Any] | None = None,
    schedule: Schedule = UNIFORM,
) -> Match:
    """Find the plan of `method` that saves the fraction `budget` of the dense model's FLOPs.

    Args:
        costs: cost table of the backbone; share one between methods.
        method: a registered name.
        budget: between 0 and 1, exclusive.
        protocol: "native" for the method's published layers, "common" for 4, 7, 10.
        stages: layers, one-based, or "all", that take the place of the protocol's.
        options: options of the method.
        schedule: a schedule without token counts; its shape divides the budget, and its layers count where
            `stages` is None.

    Raises:
        TokredError: a budget outside (0, 1), unknown names or options, stages beyond the model's depth, or
            token counts that depend on the image.
        UnsupportedModel: the method needs a CLS token and the model has none.
        Unreachable: the method cannot save that much at these stages; the message says how much it can.
    """
    check_budget(budget)
    cls = registry.get(method)
    layers = resolve_stages(cls, costs.depth, protocol, schedule.stages if stages is None else stages)
    check_counted(cls, schedule)
    if cls.adaptive():
        raise TokredError(
            f"How many tokens {method} removes depends on the image, so its threshold is set on images: "
            "`tokred compare` does it, and tokred.reduce with images."
        )
    empty = Plan(method, layers, (costs.n,) * len(layers), options or {})
    search = (Search if schedule.shape == "uniform" else DecreasingSearch)(costs, empty, budget)
    search.check_reachable()
    plan = search.adjusted(search.uniform())
    return Match(plan, costs.plan(plan), costs.reducers(plan), costs.dense, budget, costs.n)


def check_budget(budget: float) -> None:
    """Raise a `TokredError` unless the budget is a number between 0 and 1, exclusive."""
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0 < budget < 1:
        raise TokredError(
            f"A budget is the fraction of FLOPs to save, between 0 and 1, such as 0.3; got {budget!r}."
        )


def check_counted(cls: type[Reducer], schedule: Schedule) -> None:
    """Raise a `TokredError` for a schedule of token counts and a method whose counts depend on the image."""
    if cls.adaptive() and not schedule.uniform:
        raise TokredError(
            f"How many tokens {cls.name} removes depends on the image, so the schedule {schedule.name} is "
            "not for it; leave it out with --methods."
        )


def at_tokens(
    costs: CostTable,
    method: str,
    tokens: Sequence[int],
    *,
    protocol: Protocol = "native",
    stages: Layers | None = None,
    options: Mapping[str, Any] | None = None,
) -> Match:
    """The plan of `method` at token counts, whatever it saves.

    Raises:
        TokredError: as `match`, or there is not one count for each stage.
        Unreachable: the method cannot remove that many tokens, or there are not so many.
    """
    cls, counts = registry.get(method), Schedule(tokens=tuple(tokens))
    layers = resolve_stages(cls, costs.depth, protocol, stages)
    check_counted(cls, counts)
    if len(tokens) != len(layers):
        raise TokredError(
            f"{method} reduces at {len(layers)} layers here ({spaced(layers)}), so tokens needs as many "
            f"numbers, got {len(tokens)}; set other layers by stages."
        )
    for layer, (n, keep) in zip(layers, pairwise((costs.n, *tokens)), strict=True):
        if not cls.floor(n) <= keep <= n:
            raise Unreachable(
                f"{method} can reduce {n} tokens to between {cls.floor(n)} and {n}, not to {keep} as at "
                f"layer {layer}."
            )
    plan = Plan(method, layers, tuple(tokens), options or {})
    return Match(plan, costs.plan(plan), costs.reducers(plan), costs.dense, None, costs.n)


def at_knob(
    costs: CostTable,
    method: str,
    knob: float,
    *,
    protocol: Protocol = "native",
    stages: Layers | None = None,
    options: Mapping[str, Any] | None = None,
) -> Match:
    """The plan of `method` at a value of its knob: tokens removed per stage, keep rate, or threshold.

    Raises:
        TokredError: as `match`, or a knob out of range.
    """
    cls = registry.get(method)
    layers = resolve_stages(cls, costs.depth, protocol, stages)
    highest = costs.n if cls.knob == "removed" else 1
    if not 0 <= knob <= highest:
        what = {
            "rate": "a keep rate between 0 and 1",
            "removed": f"the tokens to remove at each stage, at most {costs.n}",
            "threshold": "a threshold between 0 and 1",
        }
        raise TokredError(f"The knob of {method} is {what[cls.knob]}; got {knob:g}.")
    tokens = uniform_counts(cls, costs.n, len(layers), knob)
    plan = Plan(method, layers, tokens, options or {}, knob)
    return Match(plan, costs.plan(plan), costs.reducers(plan), costs.dense, None, costs.n)


def match_each(
    costs: CostTable,
    methods: Sequence[str],
    budget: float | None,
    *,
    protocol: Protocol = "native",
    stages: Layers | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    schedule: Schedule = UNIFORM,
) -> tuple[dict[str, Match], dict[str, TokredError]]:
    """`match` for several methods: their plans, and the errors of the methods that have none.

    Args: as for `match`, but `options` by method; a schedule with token counts needs no budget.

    Raises:
        TokredError: unknown names, options or protocol. Other errors of a method are returned, not raised.
    """
    options = options or {}
    for name, chosen in options.items():
        complete_options(registry.get(name), chosen)
    matches, refused = {}, {}
    for name in methods:
        try:
            matches[name] = _at(schedule, costs, name, budget, protocol, stages, options.get(name))
        except UnknownName:
            raise
        except TokredError as error:
            refused[name] = error
        except (Exception, SystemExit) as error:  # a method under development must not take the others along
            refused[name] = TokredError(
                f"{name} has no plan: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            )
    costs.save()
    return matches, refused


def _at(
    schedule: Schedule,
    costs: CostTable,
    method: str,
    budget: float | None,
    protocol: Protocol,
    stages: Layers | None,
    options: Mapping[str, Any] | None,
) -> Match:
    """The plan of a method at the token counts of a schedule, or else at a budget."""
    place: Any = {"protocol": protocol, "stages": schedule.stages if stages is None else stages}
    if schedule.tokens is not None:
        return at_tokens(costs, method, schedule.tokens, options=options, **place)
    return match(costs, method, budget, options=options, schedule=schedule, **place)  # type: ignore[arg-type]
