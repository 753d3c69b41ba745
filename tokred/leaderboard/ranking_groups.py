"""Groups of comparable rows on a board, and the ranks in them.

A `Setting` is one model with its weights on one set of images, prepared in one way. Within a setting, each
`Group` of rows with one budget and one kind of training is ranked. docs/leaderboard.md states the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tokred.leaderboard.exclusions import BASELINE_OFF
from tokred.leaderboard.ranked_row import RankedRow
from tokred.tables.row import BASELINE, Row

_SETTING = ("dataset", "split", "img_size", "crop_pct", "interpolation", "precision", "on_error")
_TRAINING = {"none": 0, "reducer": 1, "full": 2, "published": 3}


@dataclass
class Group:
    """Rows of one budget and one kind of training.

    Attributes:
        budget: the budget; None for plans set by hand.
        training: the kind of training.
        ranked: the ranked rows including the controls, best first.
        apart: the excluded rows.
    """

    budget: float | None
    training: str
    ranked: list[RankedRow] = field(default_factory=list)
    apart: list[RankedRow] = field(default_factory=list)


@dataclass
class Setting:
    """A model on some images.

    Attributes:
        row: any of its rows, for the columns that they share.
        baselines: the rows of the dense model; there are several for several devices or batch sizes.
        apart: the excluded rows of the dense model.
        groups: the groups that are ranked.
    """

    row: Row
    baselines: list[RankedRow] = field(default_factory=list)
    apart: list[RankedRow] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def settings(rows: Sequence[RankedRow]) -> list[Setting]:
    """Arrange all rows in settings and groups and rank them, in an order that depends on the rows alone."""
    return [_setting(sorted(part, key=_order)) for part in exclude_and_part(rows)]


def exclude_and_part(rows: Sequence[RankedRow]) -> list[list[RankedRow]]:
    """Divide rows by model, weights, images and preparation, and exclude those that do not fit the others.

    Rows about the first images of a split are placed with those about all of its images, if there are any.
    """
    parts: dict[tuple[str, ...], dict[int, list[RankedRow]]] = {}
    for ranked in sorted(rows, key=lambda ranked: ranked.row.limited):
        row = ranked.row
        columns = (row.model, row.weights_hash or row.weights, *(getattr(row, column) for column in _SETTING))
        by_count = parts.setdefault(tuple(map(str, columns)), {})
        left_out = row.n_failed if row.on_error == "skip" else 0
        count = max(by_count) if by_count and row.limited else (row.n_images or 0) + (left_out or 0)
        by_count.setdefault(count, []).append(ranked)
    members = [part for _, by_count in sorted(parts.items()) for _, part in sorted(by_count.items())]
    for part in members:
        _exclude_misfits(part)
    return members


def _exclude_misfits(part: Sequence[RankedRow]) -> None:
    """Add the exclusions that follow from the other rows of a part.

    Rows with the same name and number of images must have the same images, those of most rows without
    exclusions. And if the baseline differs from the published one, all rows are excluded.
    """
    sound = [ranked for ranked in part if not ranked.exclusions]
    hashes = Counter(ranked.row.data_hash for ranked in sound or part)
    usual = min(hashes, key=lambda digest: (-hashes[digest], digest))
    off = any(ranked.row.method == BASELINE and BASELINE_OFF in ranked.exclusions for ranked in part)
    for ranked in part:
        row = ranked.row
        if row.data_hash != usual:
            hashed = f"hash {row.data_hash[:8] or 'unknown'}, not {usual[:8] or 'unknown'}"
            ranked.exclusions.append(f"different images from the other rows ({hashed})")
        if off and row.status == "ok" and BASELINE_OFF not in ranked.exclusions:
            ranked.exclusions.append(BASELINE_OFF)


def _order(ranked: RankedRow) -> tuple[object, ...]:
    return -ranked.top1, ranked.row.gflops or 0, ranked.key


def _setting(rows: Sequence[RankedRow]) -> Setting:
    """Make a setting of sorted rows, and rank its groups."""
    setting = Setting(min(rows, key=lambda ranked: bool(ranked.exclusions)).row)
    for ranked in rows:
        if ranked.row.method == BASELINE:
            (setting.apart if ranked.exclusions else setting.baselines).append(ranked)
    methods = [ranked for ranked in rows if ranked.row.method != BASELINE]
    for budget, training in _group_names(methods):
        group = Group(budget, training)
        for ranked in methods:
            if ranked.row.control and ranked.row.budget in (budget, None) and not ranked.exclusions:
                group.ranked.append(ranked)  # a control is in the groups of all kinds of training
            elif (ranked.row.budget, ranked.row.training) == (budget, training):
                (group.apart if ranked.exclusions else group.ranked).append(ranked)
        _rank(group)
        setting.groups.append(group)
    shown = {ranked for group in setting.groups for ranked in (*group.ranked, *group.apart)}
    for ranked in methods:  # an excluded control is listed once, in the first group of its budget
        if ranked not in shown:
            same = (group for group in setting.groups if group.budget == ranked.row.budget)
            next(same, setting.groups[0]).apart.append(ranked)
    return setting


def _group_names(methods: Sequence[RankedRow]) -> list[tuple[float | None, str]]:
    """Budget and training of the groups; controls form a group only if no method has their budget."""
    names = {(ranked.row.budget, ranked.row.training) for ranked in methods if not ranked.row.control}
    served = {budget for budget, _ in names} | ({None} if names else set())
    controls = {(ranked.row.budget, ranked.row.training) for ranked in methods if ranked.row.control}
    names |= {name for name in controls if name[0] not in served}
    return sorted(names, key=lambda name: (name[0] is None, name[0] or 0, _TRAINING.get(name[1], 9), name[1]))


def _rank(group: Group) -> None:
    """Rank the methods of a group, and note the controls that they are not significantly better than."""
    from tokred.evaluation import significance  # SciPy takes half a second

    methods = [ranked for ranked in group.ranked if not ranked.row.control]
    controls = [ranked for ranked in group.ranked if ranked.row.control]
    names = [control.row.method for control in controls]
    beats = significance.shown(_test(methods))
    ties = ["\0".join(ranked.key) for ranked in methods]
    ranks = significance.ladder([ranked.top1 for ranked in methods], beats, ties)
    for ranked, rank in zip(methods, ranks, strict=True):
        others = [other for other in methods if other is not ranked]
        ranked.rank = rank
        ranked.unpaired = bool(others) and not any(_paired(ranked, other) for other in others)
        places = significance.unbeaten(_test([ranked, *controls]), 0, range(1, len(controls) + 1))
        absent = [name for name in ranked.row.unbeaten.split() if name not in names]  # known from its run
        ranked.unbeaten = list(dict.fromkeys([*(names[place - 1] for place in places), *absent]))
    by_top1, by_nll = significance.better((_test(methods), _nll_test(methods)), len(methods))
    for place, ranked in enumerate(methods):
        ranked.better_top1 = [other for k, other in enumerate(methods) if (place, k) in by_top1]
        ranked.better_nll = [other for k, other in enumerate(methods) if (place, k) in by_nll]


def _test(rows: Sequence[RankedRow]) -> Callable[[int, int], float]:
    """The paired test for rows with evidence on the same images, else the test of their intervals."""
    from tokred.evaluation import significance

    def test(first: int, second: int) -> float:
        one, other = rows[first], rows[second]
        if one.evidence and other.evidence and _paired(one, other):
            correct = [one.evidence.correct, other.evidence.correct]
            return significance.paired([one.top1, other.top1], correct, one.evidence.clusters)(0, 1)
        better = one.top1 > other.top1
        return significance.unpaired(one.top1, one.interval, other.top1, other.interval) if better else 1.0

    return test


def _nll_test(rows: Sequence[RankedRow]) -> Callable[[int, int], float]:
    """The paired test of NLL where both rows have it on the same images; elsewhere nothing is shown."""
    from tokred.evaluation import significance

    nll: dict[str, dict[int, np.ndarray]] = {}
    clusters: dict[str, np.ndarray | None] = {}
    for place, ranked in enumerate(rows):
        if ranked.evidence is not None and ranked.evidence.nll is not None:
            nll.setdefault(ranked.evidence.images, {})[place] = ranked.evidence.nll
            clusters[ranked.evidence.images] = ranked.evidence.clusters
    tests = {
        tuple(same): significance.paired_nll(list(same.values()), clusters[images])
        for images, same in nll.items()
    }

    def test(first: int, second: int) -> float:
        places = next((places for places in tests if first in places and second in places), ())
        return tests[places](places.index(first), places.index(second)) if places else 1.0

    return test


def _paired(one: RankedRow, other: RankedRow) -> bool:
    """Whether two rows have predictions of the same images."""
    return bool(one.evidence and other.evidence and one.evidence.images == other.evidence.images)
