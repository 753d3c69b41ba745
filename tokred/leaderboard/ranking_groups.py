"""Groups of comparable rows on a board, and the ranks in them.

A `Setting` is one model with its weights on one set of images, prepared in one way: it has one dense model. A
`Group` competes in it: one budget, and one kind of training. docs/leaderboard.md states the rules.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokred.errors import TokredError
from tokred.evaluation import significance
from tokred.evaluation.run_folder import Run
from tokred.leaderboard.board import key, read, run_of
from tokred.leaderboard.evidence import Evidence, claims, evidence_of
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.exclusions import exclusions, mutual_exclusions, partition
from tokred.tables.row import BASELINE, Row


@dataclass
class RankedRow:
    """A row of a board with its evidence and its rank.

    Attributes:
        row: the row.
        key: its identity, from `board.key`.
        evidence: the predictions behind it, if the board has them.
        exclusions: the reasons not to rank it.
        rank: 1 for the best; None if it is not ranked.
        unpaired: whether it was compared by intervals alone, for lack of evidence.
        unbeaten: the controls that it is not significantly better than.
        disputed: what it states that does not follow from its predictions.
    """

    row: Row
    key: tuple[str, ...] = ()
    evidence: Evidence | None = None
    exclusions: list[str] = field(default_factory=list)
    rank: int | None = None
    unpaired: bool = False
    unbeaten: list[str] = field(default_factory=list)
    disputed: str = ""

    @property
    def top1(self) -> float:
        """Top-1, or 0 where there is none."""
        top1 = self.row.top1
        return top1 if top1 is not None and math.isfinite(top1) else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The limits of top-1."""
        low, high = self.row.top1_lo, self.row.top1_hi
        return (self.top1, self.top1) if low is None or high is None else (low, high)

    @property
    def verified(self) -> dict[str, Any] | None:
        """The result of the latest verification."""
        return self.evidence.verified if self.evidence else None


@dataclass
class Group:
    """Rows of one budget and one kind of training.

    Attributes:
        budget: the budget; None for plans set by hand.
        training: the kind of training.
        ranked: the rows that are ranked, with the controls among them, best first.
        apart: the rows that are excluded.
    """

    budget: float | None
    training: str
    ranked: list[RankedRow] = field(default_factory=list)
    apart: list[RankedRow] = field(default_factory=list)


@dataclass
class Setting:
    """A model on some images.

    Attributes:
        row: any of its rows, for what they have in common.
        baselines: the rows of the dense model; several, where devices or batch sizes were.
        apart: the rows of the dense model that are excluded.
        groups: what competes.
    """

    row: Row
    baselines: list[RankedRow] = field(default_factory=list)
    apart: list[RankedRow] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def load(board: Path) -> list[RankedRow]:
    """The rows of a board, or of a run, with their evidence. Hold the board's lock where others may write.

    Raises:
        TokredError: it is no board; see `board.read`.
    """
    store, run = Store(board), None
    with contextlib.suppress(TokredError):
        run = run_of(board)
    return [_with_evidence(row, store, run) for row in read(board)]


def _with_evidence(row: Row, store: Store, run: Run | None) -> RankedRow:
    ranked = RankedRow(row, key(row), exclusions=exclusions(row))
    ranked.evidence, contrary = store.get(ranked.key, row)
    wrong = (
        [f"top1 {row.top1:.12g} instead of {contrary.top1:.6g}"] if contrary and row.top1 is not None else []
    )
    if run is not None and ranked.evidence is None:
        ranked.evidence, wrong = evidence_of(run, row), claims(run, row)
    if wrong and row.status == "ok":
        ranked.disputed = f"{', '.join(wrong)} by its predictions"
        ranked.exclusions.insert(0, ranked.disputed)
    if ranked.verified and not ranked.verified.get("confirmed"):
        date = ranked.verified.get("date", "another day")
        ranked.exclusions.insert(0, f"not confirmed when it was run again on {date}")
    return ranked


def settings(rows: list[RankedRow]) -> list[Setting]:
    """All rows in settings and groups, ranked or excluded, in an order that depends on the rows alone."""
    every = []
    for places in partition([ranked.row for ranked in rows]):
        members = [rows[place] for place in places]
        mutual = mutual_exclusions([one.row for one in members], [one.exclusions for one in members])
        for ranked, more in zip(members, mutual, strict=True):
            ranked.exclusions += more
        members.sort(key=lambda ranked: (-ranked.top1, ranked.row.gflops or 0, ranked.key))
        every.append(_setting(members))
    return every


def _setting(rows: list[RankedRow]) -> Setting:
    """The setting of some rows, which are sorted, with its groups ranked."""
    setting = Setting(min(rows, key=lambda ranked: bool(ranked.exclusions)).row)
    for ranked in rows:
        if ranked.row.method == BASELINE:
            (setting.apart if ranked.exclusions else setting.baselines).append(ranked)
    methods = [ranked for ranked in rows if ranked.row.method != BASELINE]
    for budget, training in _group_names(methods):
        group = Group(budget, training)
        for ranked in methods:
            if ranked.row.control and ranked.row.budget in (budget, None) and not ranked.exclusions:
                group.ranked.append(ranked)  # every kind of training must beat it
            elif (ranked.row.budget, ranked.row.training) == (budget, training):
                (group.apart if ranked.exclusions else group.ranked).append(ranked)
        _rank(group)
        setting.groups.append(group)
    shown = {id(ranked) for group in setting.groups for ranked in (*group.ranked, *group.apart)}
    for ranked in methods:  # an excluded control is listed once, in the first group of its budget
        if id(ranked) not in shown:
            own = (group for group in setting.groups if group.budget == ranked.row.budget)
            next(own, setting.groups[0]).apart.append(ranked)
    return setting


_TRAINING = {"none": 0, "reducer": 1, "full": 2, "published": 3}


def _group_names(methods: list[RankedRow]) -> list[tuple[float | None, str]]:
    """Budget and training of the groups, in order; controls form a group only where no method does."""
    names = {(ranked.row.budget, ranked.row.training) for ranked in methods if not ranked.row.control}
    served = {budget for budget, _ in names} | ({None} if names else set())
    controls = {(ranked.row.budget, ranked.row.training) for ranked in methods if ranked.row.control}
    names |= {name for name in controls if name[0] not in served}
    return sorted(names, key=lambda name: (name[0] is None, name[0] or 0, _TRAINING.get(name[1], 9), name[1]))


def _rank(group: Group) -> None:
    """Rank the methods of a group, and name the controls that they are not significantly better than."""
    methods = [ranked for ranked in group.ranked if not ranked.row.control]
    controls = [ranked for ranked in group.ranked if ranked.row.control]
    beats = significance.shown(_test(methods))
    ties = ["\0".join(ranked.key) for ranked in methods]
    ranks = significance.ladder([ranked.top1 for ranked in methods], beats, ties)
    for ranked, rank in zip(methods, ranks, strict=True):
        ranked.rank = rank
        others = [other for other in methods if other is not ranked]
        ranked.unpaired = bool(others) and not any(_paired(ranked, other) for other in others)
        ranked.unbeaten = _unbeaten(ranked, controls)


def _unbeaten(ranked: RankedRow, controls: list[RankedRow]) -> list[str]:
    """Controls that a row is not significantly better than; for those not on the board its own run counts."""
    names = [control.row.method for control in controls]
    places = significance.unbeaten(_test([ranked, *controls]), 0, range(1, len(controls) + 1))
    own = [names[place - 1] for place in places]
    return list(dict.fromkeys([*own, *(name for name in ranked.row.unbeaten.split() if name not in names)]))


def _test(rows: list[RankedRow]) -> Callable[[int, int], float]:
    """The paired test where both rows have evidence on the same images, else that of their intervals."""

    def test(first: int, second: int) -> float:
        one, other = rows[first], rows[second]
        if one.evidence and other.evidence and _paired(one, other):
            correct = [one.evidence.correct, other.evidence.correct]
            return significance.paired([one.top1, other.top1], correct, one.evidence.groups)(0, 1)
        better = one.top1 > other.top1
        return significance.unpaired(one.top1, one.interval, other.top1, other.interval) if better else 1.0

    return test


def _paired(one: RankedRow, other: RankedRow) -> bool:
    """Whether two rows have predictions of the same images."""
    return bool(one.evidence and other.evidence and one.evidence.images == other.evidence.images)
