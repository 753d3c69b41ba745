"""Which rows of a board compare, what is wrong with the others, and who is ahead of whom.

A `Setting` is one model with its weights on one set of images, prepared in one way: it has one unreduced model. A `Group` is what competes
in it: one budget, and one kind of training. docs/leaderboard.md states the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokred.evaluation import significance
from tokred.leaderboard.board import key, read, run_of
from tokred.leaderboard.evidence import Evidence, Line, RunOutcomes, number
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.exclusions import beside, marks, partition
from tokred.tables.row import BASELINE


@dataclass
class Standing:
    """One row and where it stands.

    Attributes:
        rank: 1 for the best; None for what is not ranked.
        marks: why it is not ranked, if something is wrong with it.
        unpaired: whether it was compared by intervals alone, for lack of evidence.
        unbeaten: controls that it is not shown to beat.
        disputed: what it says that does not follow from its predictions.
        key: what makes it this row, `board.key`.
    """

    line: Line
    key: tuple[str, ...] = ()
    evidence: Evidence | None = None
    marks: list[str] = field(default_factory=list)
    rank: int | None = None
    unpaired: bool = False
    unbeaten: list[str] = field(default_factory=list)
    disputed: str = ""

    @property
    def control(self) -> bool:
        return self.line["control"] == "true"

    @property
    def top1(self) -> float:
        return number(self.line["top1"]) or 0.0

    @property
    def interval(self) -> tuple[float, float]:
        low, high = number(self.line["top1_lo"]), number(self.line["top1_hi"])
        return (self.top1, self.top1) if low is None or high is None else (low, high)

    @property
    def verified(self) -> dict[str, object] | None:
        return self.evidence.verified if self.evidence else None


@dataclass
class Group:
    """Rows of one budget and one kind of training: `ranked` ones with the controls among them, best first, and `apart` the marked ones."""

    budget: float | None
    training: str
    ranked: list[Standing] = field(default_factory=list)
    apart: list[Standing] = field(default_factory=list)


@dataclass
class Setting:
    """A model on some images, with its unreduced rows (several, where devices or batch sizes were) and its groups.

    `line` is any of its rows, for what they have in common; `apart` has the unreduced rows that are marked.
    """

    line: Line
    baselines: list[Standing] = field(default_factory=list)
    apart: list[Standing] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def load(board: Path) -> list[Standing]:
    """A board's rows with their evidence, or a run's. Hold the board's lock where others may write.

    Raises:
        TokredError: it is no board; see `board.read`.
    """
    store, lines = Store(board), read(board)
    try:
        run = run_of(board)
    except ValueError:
        run = None
    return [_standing(line, store, run) for line in lines]


def _standing(line: Line, store: Store, run: RunOutcomes | None) -> Standing:
    row = Standing(line, key(line), marks=marks(line))
    row.evidence, against = store.get(row.key, line)
    claims = (
        [f"top1 {line['top1']} instead of {against.top1:.6g}"] if against and line["status"] == "ok" else []
    )
    if run is not None and row.evidence is None:
        row.evidence, claims = run.of(line), run.claims(line)
    if claims:
        row.disputed = f"{', '.join(claims)} by its predictions"
        row.marks.insert(0, row.disputed)
    found = row.verified
    if found and not found.get("confirmed"):
        row.marks.insert(0, f"not confirmed when it was run again on {found.get('date', 'another day')}")
    return row


def settings(rows: Sequence[Standing]) -> list[Setting]:
    """All rows in settings and groups, marked and ranked, in an order that depends on the rows alone."""
    made = []
    for places in partition([row.line for row in rows]):
        members = [rows[place] for place in places]
        for row, more in zip(
            members, beside([row.line for row in members], [row.marks for row in members]), strict=True
        ):
            row.marks += more
        made.append(
            _grouped(sorted(members, key=lambda row: (-row.top1, number(row.line["gflops"]) or 0, row.key)))
        )
    return made


def _grouped(rows: list[Standing]) -> Setting:
    """The setting of some rows that are sorted, with its groups ranked."""
    dense = [row for row in rows if row.line["method"] == BASELINE]
    first = min(rows, key=lambda row: bool(row.marks)).line
    made = Setting(first, [row for row in dense if not row.marks], [row for row in dense if row.marks])
    methods = [row for row in rows if row.line["method"] != BASELINE]
    names = {_group(row) for row in methods if not row.control}
    served = {budget for budget, _ in names} | (
        {None} if names else set()
    )  # controls without a budget are in all groups
    names |= {_group(row) for row in methods if row.control and _group(row)[0] not in served}
    for budget, training in sorted(
        names, key=lambda name: (name[0] is None, name[0] or 0, _TRAINING.get(name[1], 9), name[1])
    ):
        group = Group(budget, training)
        for row in methods:
            own = _group(row) == (budget, training)
            if row.control and _group(row)[0] in (budget, None) and not row.marks:
                group.ranked.append(row)  # what every kind of training must beat
            elif own:
                (group.apart if row.marks else group.ranked).append(row)
        _rank(group)
        made.groups.append(group)
    _keep_marked_controls(made, methods)
    return made


_TRAINING = {"none": 0, "reducer": 1, "full": 2, "published": 3}


def _group(row: Standing) -> tuple[float | None, str]:
    return number(row.line["budget"]), row.line["training"]


def _keep_marked_controls(made: Setting, methods: list[Standing]) -> None:
    """A control whose mark keeps it out of its budget's groups is listed once, in the first of them."""
    shown = {id(row) for group in made.groups for row in (*group.ranked, *group.apart)}
    for row in methods:
        if id(row) not in shown:
            next(
                (group for group in made.groups if group.budget == _group(row)[0]), made.groups[0]
            ).apart.append(row)


def _rank(group: Group) -> None:
    """Give ranks to the methods of a group, and say which controls they are not shown to beat."""
    methods = [row for row in group.ranked if not row.control]
    controls = [row for row in group.ranked if row.control]
    beats = significance.shown(_test(methods))
    tie = ["\0".join(row.key) for row in methods]
    for row, rank in zip(
        methods, significance.ladder([row.top1 for row in methods], beats, tie), strict=True
    ):
        row.rank = rank
        row.unpaired = len(methods) > 1 and not any(
            _pairs(row, other) for other in methods if other is not row
        )
        row.unbeaten = _unbeaten(row, controls)


def _unbeaten(row: Standing, controls: list[Standing]) -> list[str]:
    """Controls that a row is not shown to beat: those of the board by its tests, others as the row's own run found."""
    test = _test([row, *controls])
    names = [control.line["method"] for control in controls]
    found = [name for place, name in enumerate(names, start=1) if test(0, place) > significance.ALPHA]
    return list(
        dict.fromkeys([*found, *(name for name in row.line["unbeaten"].split() if name not in names)])
    )


def _test(rows: list[Standing]) -> Callable[[int, int], float]:
    """The paired test where both rows have evidence on the same images, else that of their intervals."""

    def test(first: int, second: int) -> float:
        one, other = rows[first], rows[second]
        if one.evidence and other.evidence and _pairs(one, other):
            correct = [one.evidence.correct, other.evidence.correct]
            return significance.paired([one.top1, other.top1], correct, one.evidence.groups)(0, 1)
        return (
            significance.unpaired(one.top1, one.interval, other.top1, other.interval)
            if one.top1 > other.top1
            else 1.0
        )

    return test


def _pairs(one: Standing, other: Standing) -> bool:
    return (
        one.evidence is not None
        and other.evidence is not None
        and one.evidence.images == other.evidence.images
    )
