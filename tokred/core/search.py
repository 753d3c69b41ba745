"""The search for token counts that meet a FLOP budget, the work behind `match`.

The uniform knob comes first: the value of the published knob that saves at least the budget, and as little
more as possible. Then the token counts of the stages change jointly, by as few tokens as possible, until the
cost lies within `TOLERANCE` under the target. A plan never costs more than the target.

In a decreasing schedule the number of tokens that all stages remove takes the place of the knob.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

from tokred.core.backbone import has_cls, num_heads
from tokred.core.costs import CostTable
from tokred.core.plan import Plan, decreasing_counts, floor_counts, uniform_counts
from tokred.errors import Unreachable, UnsupportedModel
from tokred.tables.row import TOLERANCE
from tokred.utils.text import spaced

REACH = 8  # tokens by which the counts of one stage may differ from the uniform knob's
_RATE_STEPS = 4096  # resolution of the search over keep rates
_TRIES = 32  # plans within the tolerance by their estimates alone


class Search:
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


class DecreasingSearch(Search):
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
