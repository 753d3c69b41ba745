"""Significance: ranks with ties, which rows are better than which, and controls that a method does not beat.

Rows are ranked by top-1, best first. The first is the leader and has rank 1. It is tested against every row
after it by a paired test (`paired`), and the p-values are corrected for their number by Holm's method.
Rows share the leader's rank down to the first that is significantly worse; that one is the next leader, its
rank is its place, and so on. So ranks never contradict top-1, equal top-1 is equal rank, and neither the
order of the rows nor chance has a say. A shared rank means "no difference was shown", not "equal".

NumPy and SciPy only: ranking what is on disk needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np

from tokred.evaluation.metrics import LEVEL, group_sums, mcnemar, mean_test
from tokred.tables.row import BASELINE, Row

ALPHA = 0.05
Test = Callable[[int, int], float]
"""The p-value that one row is better than another, by their places; 1 where it is not the better one."""

Beats = Callable[[int, Sequence[int]], Sequence[bool]]
"""Which of some rows, by their places, a row is shown to beat."""


@dataclass(frozen=True)
class Flags:
    """Significance flags of one row, named as its columns.

    Attributes:
        unbeaten: controls, space-separated, that the method is not shown to beat.
        best: whether the method is shown to beat every other method of its budget.
    """

    unbeaten: str = ""
    best: bool = False


def judge(contenders: Sequence[Row], merits: Mapping[int, np.ndarray], groups: np.ndarray) -> list[Flags]:
    """The significance flags of all rows of one run.

    A method beats a control where it is better on average and the paired test separates them at 5 %. It is
    held against the controls of its own budget, which a method that costs more than the budget cannot beat,
    and against those without a budget. The best method of a budget is shown to beat every other method there,
    whatever was trained for it; `competes` says which rows take part.

    Args:
        contenders: the rows, baseline and controls included.
        merits: [n] by place in `contenders`: whether each image is right, or, without labels, whether the
            dense model predicts the same; without a classifier, similarities of features, which are compared
            by their means; NaN where an image has none. Rows that failed are missing.
        groups: [n], images that are not independent share a number.
    """
    places, arrays = list(merits), list(merits.values())
    members, shares = [contenders[place] for place in places], [float(np.nanmean(array)) for array in arrays]
    test, best = _test(shares, arrays, groups), set[int]()
    for budget in {row.budget for row in members} - {None}:
        rivals = [i for i, row in enumerate(members) if row.budget == budget and competes(row)]
        first = _leaders(rivals, shares, arrays, test)
        if len(rivals) > 1 and len(first) == 1:
            best.add(first[0])
    flags = [Flags() for _ in contenders]
    for i, row in enumerate(members):
        if row.method != BASELINE and not row.control:
            controls = [
                k for k, other in enumerate(members) if other.control and other.budget in (row.budget, None)
            ]
            dearer = {k for k in controls if row.gap < 0 and members[k].budget is not None}
            names = [members[k].method for k in controls if k in dearer.union(unbeaten(test, i, controls))]
            flags[places[i]] = Flags(unbeaten=" ".join(names), best=i in best)
    return flags


def _test(shares: Sequence[float], merits: Sequence[np.ndarray], groups: np.ndarray) -> Test:
    """The paired test between any two of the rows that `judge` compares."""
    if merits and merits[0].dtype != bool:
        return paired_nll([-merit for merit in merits], groups)
    return paired(shares, merits, groups)


def _leaders(
    rivals: Sequence[int], shares: Sequence[float], merits: Sequence[np.ndarray], test: Test
) -> list[int]:
    """The places of those rivals that have rank 1 among them."""
    beats = shown(lambda i, j: test(rivals[i], rivals[j]))
    places = ladder([shares[i] for i in rivals], beats, [merits[i].tobytes() for i in rivals])
    return [i for i, rank in zip(rivals, places, strict=True) if rank == 1]


def competes(row: Row) -> bool:
    """Whether a row may be called the best of its budget.

    Controls, the baseline, unfitted methods, methods that these images fitted, and those that cost more than
    the budget do not take part.
    """
    return not (row.control or row.unfitted or row.fitted_here or row.gap < 0 or row.method == BASELINE)


def unbeaten(test: Test, row: int, controls: Iterable[int]) -> list[int]:
    """The controls, by their places, that a row is not shown to beat; each is tested alone."""
    return [control for control in controls if test(row, control) > ALPHA]


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction for k tests, as adjusted p-values, [k]."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def ranks(
    top1s: Sequence[float],
    correct: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray | None = None,
) -> list[int]:
    """The rank of each row, 1 for the best, by the rule above.

    Args:
        top1s: [m] accuracies, in any unit.
        correct: [m, n] bool, whether each row has each image right.
        groups: [n], images that are not independent share a number; None where all are.
    """
    return ladder(
        top1s,
        shown(paired(top1s, correct, groups)),
        tiebreak=[np.packbits(row).tobytes() for row in correct],
    )


def paired(
    top1s: Sequence[float], correct: np.ndarray | Sequence[np.ndarray], groups: np.ndarray | None
) -> Test:
    """The paired test between any two rows. Arguments as for `ranks`."""

    def test(row: int, other: int) -> float:
        net = _net(correct[other], correct[row], groups)
        agree = top1s[row] > top1s[other] and (net > 0).sum() > (net < 0).sum()
        return mcnemar(net) if agree else 1.0

    return test


def paired_nll(nll: Sequence[np.ndarray], groups: np.ndarray | None) -> Test:
    """The paired test of the mean negative log-likelihood between any two rows.

    Args:
        nll: [m, n], of each row on each image; NaN where an image has no prediction, for all rows alike.
        groups: [n], images that are not independent share a number; None where all are.
    """
    known = ~np.isnan(nll[0])
    losses = [np.asarray(loss, dtype=float)[known] for loss in nll]
    count = np.ones(known.sum())
    if groups is not None:
        count, *losses = group_sums(np.asarray(groups)[known], count, *losses)

    def test(row: int, other: int) -> float:
        excess = losses[other] - losses[row]
        return mean_test(excess, count) if excess.sum() > 0 else 1.0

    return test


def better(tests: Sequence[Test], rows: int) -> list[set[tuple[int, int]]]:
    """For each of several tests, the pairs of rows of which the first is shown to be better.

    One correction by Holm's method covers all pairs and all tests.

    Args:
        tests: the tests, each by another measure.
        rows: the number of rows.
    """
    pairs = [
        (place, *min((test(i, j), i, j), (test(j, i), j, i)))
        for place, test in enumerate(tests)
        for i, j in combinations(range(rows), 2)
    ]
    shown_by: list[set[tuple[int, int]]] = [set() for _ in tests]
    for (place, _, first, second), p in zip(pairs, holm([pair[1] for pair in pairs]), strict=True):
        if p <= ALPHA:
            shown_by[place].add((first, second))
    return shown_by


def shown(test: Test) -> Beats:
    """The relation "is shown to beat", by a test that is corrected for the number of rows."""
    return lambda row, others: (holm([test(row, other) for other in others]) <= ALPHA).tolist()


def ladder(top1s: Sequence[float], beats: Beats, tiebreak: Sequence[bytes | str] | None = None) -> list[int]:
    """Ranks by the rule above from any notion of "shown to beat".

    Args:
        top1s: [m] accuracies, in any unit.
        beats: function of a row and of rows with no higher top-1; which of these it is shown to beat.
        tiebreak: [m] sort keys that decide which of several rows with equal top-1 leads; by default the
            first.
    """
    order = sorted(range(len(top1s)), key=lambda i: (-top1s[i], tiebreak[i] if tiebreak else b"", i))
    places, start = [0] * len(order), 0
    while start < len(order):
        rest = order[start + 1 :]
        beaten = beats(order[start], rest) if rest else []
        worse = [top1s[row] for row, lost in zip(rest, beaten, strict=True) if lost]
        stop = next(
            (place for place, row in enumerate(order) if place > start and worse and top1s[row] <= worse[0]),
            len(order),
        )
        for row in order[start:stop]:
            places[row] = start + 1
        start = stop
    return places


def unpaired(
    top1_a: float, interval_a: tuple[float, float], top1_b: float, interval_b: tuple[float, float]
) -> float:
    """Two-sided p-value of the hypothesis that two accuracies are equal, from their 95 % intervals alone.

    For rows without per-image predictions; the two models are treated as if each had images of its own. On
    shared images the test has less power than `paired`, since it cannot know that both models miss the
    same hard ones. 1 where an interval is not finite or has no width.
    """
    width = np.hypot(interval_a[1] - interval_a[0], interval_b[1] - interval_b[0])
    if not (np.isfinite(width) and width > 0):
        return 1.0
    normal = NormalDist()
    error = width / (2 * normal.inv_cdf((1 + LEVEL) / 2))
    return float(2 * normal.cdf(-abs(top1_a - top1_b) / error))


def _net(correct_a: np.ndarray, correct_b: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """The number of images by which the second model is ahead in each group, [g]."""
    ahead = np.asarray(correct_b, dtype=np.int64) - np.asarray(correct_a, dtype=np.int64)
    return ahead if groups is None else group_sums(groups, ahead)[0]
