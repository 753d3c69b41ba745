"""`match`: the plan of a method that meets a FLOP budget.

The uniform knob comes first: the largest saving that a single value of the published knob gives without
saving less than asked. Then the token counts of the stages change jointly, by as few tokens as possible,
until the cost lies within `TOLERANCE` under the target. A plan never costs more than the target.

In a decreasing schedule the number of tokens that all stages remove takes the place of the knob.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product
from numbers import Real
from typing import Any

from tokred.core import registry
from tokred.core.backbone import has_cls, num_heads
from tokred.core.costs import CostTable
from tokred.core.options import complete_options
from tokred.core.plan import (
    Plan,
    Protocol,
    decreasing_counts,
    floor_counts,
    resolve_stages,
    uniform_counts,
)
from tokred.core.reducer import Reducer
from tokred.core.schedule import UNIFORM, Layers, Schedule
from tokred.errors import TokredError, UnknownName, Unreachable, UnsupportedModel
from tokred.tables.row import TOLERANCE
from tokred.utils.text import spaced

REACH = 8  # tokens by which the counts of one stage may differ from the uniform knob's
_RATE_STEPS = 4096  # resolution of the search over keep rates
_TRIES = 32  # plans within the tolerance by their estimates alone


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
    search = (_Search if schedule.shape == "uniform" else _Decreasing)(costs, empty, budget)
    search.check_reachable()
    plan = search.adjusted(search.uniform())
    return Match(plan, costs.plan(plan), costs.reducers(plan), costs.dense, budget, costs.n)


def check_budget(budget: float) -> None:
    """Check that a budget is a number between 0 and 1, exclusive.

    Raises:
        TokredError: it is not.
    """
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0 < budget < 1:
        raise TokredError(
            f"A budget is the fraction of FLOPs to save, between 0 and 1, such as 0.3; got {budget!r}."
        )


def check_counted(cls: type[Reducer], schedule: Schedule) -> None:
    """Refuse a schedule of token counts for a method whose counts depend on the image.

    Raises:
        TokredError: it is one.
    """
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


class _Search:
    """The two steps of `match` for one method on one backbone."""

    manner = ""
    """What a message adds to the layers."""

    def __init__(self, costs: CostTable, empty: Plan, budget: float) -> None:
        self.costs, self.empty, self.budget = costs, empty, budget
        self.cls = empty.reducer
        self.target = (1 - budget) * costs.dense
        self.segments = costs.segments(empty)
        self._segment_costs: dict[tuple[int, int], int] = {}

    def check_reachable(self) -> None:
        """Raise unless the method runs on this model and can save the budget."""
        n, dim, heads = self.costs.n, self.costs.backbone.embed_dim, num_heads(self.costs.backbone)
        first = self.cls(n, n, dim, heads, **self.empty.options)
        first.check_first()
        if first.needs_cls and not has_cls(self.costs.backbone):
            raise UnsupportedModel(
                f"{self.cls.name} needs a CLS token, which this model does not have; leave it out with "
                "--methods."
            )
        if self.estimate(self._least.tokens) > self.target:
            raise self._unreachable()

    @property
    def _least(self) -> Plan:
        """The plan with the fewest tokens that the method can leave at these stages."""
        return replace(self.empty, tokens=floor_counts(self.cls, self.costs.n, len(self.empty.stages)))

    def _unreachable(self) -> Unreachable:
        most = 1 - self.costs.plan(self._least) / self.costs.dense
        where = f"layers {spaced(self.empty.stages)}{self.manner}"
        return Unreachable(
            f"{self.cls.name} at {where} can save at most {most:.1%} of this model's FLOPs, not "
            f"{self.budget:.1%}; lower the budget, or set more or earlier layers with --stages."
        )

    def uniform(self) -> Plan:
        """The uniform plan that saves at least the budget, and as little more as possible."""
        low, high = 0, self._steps
        while low < high:
            middle = (low + high) // 2
            if self.estimate(self._with_knob(middle).tokens) <= self.target:
                high = middle
            else:
                low = middle + 1
        return self._with_knob(low)

    @property
    def _steps(self) -> int:
        """Number of steps of the knob: tokens removed at all stages, or steps down from a keep rate of 1."""
        return self.costs.n * len(self.empty.stages) if self.cls.knob == "removed" else _RATE_STEPS

    def _with_knob(self, step: int) -> Plan:
        stages = len(self.empty.stages)
        knob = step / stages if self.cls.knob == "removed" else 1 - step / _RATE_STEPS
        return replace(self.empty, tokens=uniform_counts(self.cls, self.costs.n, stages, knob), knob=knob)

    def estimate(self, tokens: tuple[int, ...]) -> float:
        """Cost of counts, exact but for the reducers' share, which comes from a fitted polynomial."""
        counts = (self.costs.n, *tokens)
        backbone = sum(self._segment(index, n) for index, n in enumerate(counts))
        reducers = sum(self.costs.reducer_estimate(self.empty, n, keep) for n, keep in pairwise(counts))
        return self.costs.embedding + backbone + reducers

    def _segment(self, index: int, n: int) -> int:
        if (index, n) not in self._segment_costs:
            self._segment_costs[index, n] = sum(
                self.costs.part(part, layer, n) for part, layer in self.segments[index]
            )
        return self._segment_costs[index, n]

    def adjusted(self, start: Plan) -> Plan:
        """The plan nearest to `start` within the tolerance; else the plan closest to the target."""
        width = TOLERANCE * self.costs.dense
        candidates: list[tuple[bool, float, int, tuple[int, ...]]] = []
        error, misses = 0.0, 0  # of estimates, where a reducer's cost is no polynomial
        for tokens in self._neighbours(start.tokens):
            slack = self.target - self.estimate(tokens) - error
            if 0 <= slack <= width and misses < _TRIES:
                exact = self.target - self.costs.plan(replace(start, tokens=tokens))
                if 0 <= exact <= width:
                    return replace(start, tokens=tokens)
                error, misses, slack = error + slack - exact, misses + 1, exact
            if slack >= 0:
                candidates.append((slack > width, slack if slack > width else 0, len(candidates), tokens))
        # The order is: within the tolerance, then nearest to the target; a count decides what the estimate
        # proposes.
        for *_, tokens in sorted(candidates):
            plan = replace(start, tokens=tokens)
            if self.costs.plan(plan) <= self.target:
                return plan
        return self._affordable(start)

    def _affordable(self, start: Plan) -> Plan:
        """The first uniform plan whose exact cost meets the target: the fallback if estimates are too low."""
        for step in range(self._steps + 1):
            plan = self._with_knob(step)
            if sum(plan.tokens) <= sum(start.tokens) and self.costs.plan(plan) <= self.target:
                return plan
        raise self._unreachable()

    def _neighbours(self, tokens: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Feasible counts near `tokens`, the smallest changes first, and of equal ones the most even."""
        for change in _changes(len(tokens)):
            counts = tuple(count + delta for count, delta in zip(tokens, change, strict=True))
            if all(self.cls.floor(n) <= keep <= n for n, keep in pairwise((self.costs.n, *counts))):
                yield counts


class _Decreasing(_Search):
    """The search for a plan each of whose stages removes fewer tokens than the one before."""

    manner = " in a decreasing schedule"

    @property
    def _least(self) -> Plan:
        return self._with_knob(self._steps)

    @property
    def _steps(self) -> int:
        return self.costs.n

    def _with_knob(self, step: int) -> Plan:
        counts = decreasing_counts(self.cls, self.costs.n, len(self.empty.stages), step)
        return replace(self.empty, tokens=counts)

    def _neighbours(self, tokens: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        ties = self._steps_down(tokens).count(0)  # few tokens in many stages leave some alike
        for counts in super()._neighbours(tokens):
            steps = self._steps_down(counts)
            if min(steps, default=0) >= 0 and steps.count(0) <= ties:
                yield counts

    def _steps_down(self, tokens: tuple[int, ...]) -> list[int]:
        """By how many tokens each stage but the first removes fewer than the one before."""
        removed = [before - after for before, after in pairwise((self.costs.n, *tokens))]
        return [before - after for before, after in pairwise(removed)]


@cache
def _changes(stages: int) -> list[tuple[int, ...]]:
    """Small changes of the counts of some stages, the smallest first."""
    if stages <= 3:
        changes = list(product(range(-REACH, REACH + 1), repeat=stages))
    else:  # with many layers, one token more on a run of them and one more or less on another is enough
        places = range(stages)
        runs = [tuple(int(i <= k < j) for k in places) for i in places for j in range(i, stages + 1)]
        ones = [tuple(sign * (i == k) for k in places) for i in places for sign in (-1, 0, 1)]
        changes = list({tuple(map(sum, zip(run, one, strict=True))) for run in runs for one in ones})
    return sorted(changes, key=lambda change: (sum(map(abs, change)), max(map(abs, change)), change))
