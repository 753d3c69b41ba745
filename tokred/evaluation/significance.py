"""Ranks with ties: a row is placed behind another one only where a paired test tells the two apart.

The rule. Rows go by top-1, best first. The first is the leader and has rank 1. It is tested against every row after it (`separated`), and
the p-values are corrected for their number by Holm's method. Rows share the leader's rank down to the first that is shown to be worse;
that one is the next leader, its rank is its place, and so on. So ranks never contradict top-1, equal top-1 is equal rank, and neither the
order of the rows nor chance has a say. A shared rank means "not told apart", not "equal".

NumPy and SciPy only: ranking what is on disk needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from tokred.evaluation.metrics import LEVEL, mcnemar

ALPHA = 0.05
Test = Callable[[int, int], float]
"""The p-value that a row is better than another one, by their places; 1 where what the test found contradicts top-1."""

Beats = Callable[[int, Sequence[int]], Sequence[bool]]
"""Which of some rows, by their places, a row is shown to beat."""


def separated(correct_a: np.ndarray, correct_b: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Two-sided p-value that neither of two models is better on the same images; small where they are told apart.

    Args:
        correct_a: [n] bool, whether each image is right.
        correct_b: the same of the other model, in the same order.
        groups: [n], images that are not independent share a number; None where all are.
    """
    return mcnemar(_net(correct_a, correct_b, groups))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction: p-values, [k], that keep the chance of any false finding among k tests at the level they are held to."""
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
    alpha: float = ALPHA,
) -> list[int]:
    """The rank of each row, 1 for the best, by the rule above.

    Args:
        top1s: of m rows, in any unit.
        correct: [m, n] bool, whether each row has each image right.
        groups: [n], images that are not independent share a number; None where all are.
        alpha: level of the tests.
    """
    return ladder(
        top1s,
        shown(paired(top1s, correct, groups), alpha),
        tiebreak=[np.packbits(row).tobytes() for row in correct],
    )


def leaders(
    top1s: Sequence[float],
    correct: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    alpha: float = ALPHA,
) -> list[int]:
    """The rows that share rank 1; a single one is shown to beat all others. Arguments as for `ranks`."""
    return [index for index, rank in enumerate(ranks(top1s, correct, groups, alpha)) if rank == 1]


def paired(
    top1s: Sequence[float], correct: np.ndarray | Sequence[np.ndarray], groups: np.ndarray | None
) -> Test:
    """The paired test between any two rows. Arguments as for `ranks`."""

    def test(row: int, other: int) -> float:
        net = _net(correct[other], correct[row], groups)
        agree = top1s[row] > top1s[other] and (net > 0).sum() > (net < 0).sum()
        return mcnemar(net) if agree else 1.0

    return test


def shown(test: Test, alpha: float = ALPHA) -> Beats:
    """Which of some rows a row is shown to beat, by a test that is corrected for their number."""
    return lambda row, others: (holm([test(row, other) for other in others]) <= alpha).tolist()


def ladder(top1s: Sequence[float], beats: Beats, tiebreak: Sequence[bytes | str] | None = None) -> list[int]:
    """Ranks by the rule above from any notion of "shown to beat".

    Args:
        top1s: of m rows.
        beats: of a row and others, none of which has a higher top-1, which of them it is shown to beat.
        tiebreak: which of rows with equal top-1 leads; by default the first given.
    """
    order = sorted(range(len(top1s)), key=lambda i: (-top1s[i], tiebreak[i] if tiebreak else b"", i))
    found, start = [0] * len(order), 0
    while start < len(order):
        rest = order[start + 1 :]
        beaten = beats(order[start], rest) if rest else []
        worse = [top1s[row] for row, lost in zip(rest, beaten, strict=True) if lost]
        stop = next(
            (place for place, row in enumerate(order) if place > start and worse and top1s[row] <= worse[0]),
            len(order),
        )
        for row in order[start:stop]:
            found[row] = start + 1
        start = stop
    return found


def unpaired(
    top1_a: float, interval_a: tuple[float, float], top1_b: float, interval_b: tuple[float, float]
) -> float:
    """Two-sided p-value that two accuracies are equal, from their 95 % intervals alone, as if each had images of its own.

    For rows whose per-image outcomes are not at hand. On shared images it finds less than `separated`, since it cannot know that both
    models miss the same hard ones. 1 where an interval is not finite or has no width and there is nothing to go by.
    """
    width = np.hypot(interval_a[1] - interval_a[0], interval_b[1] - interval_b[0])
    if not (np.isfinite(width) and width > 0):
        return 1.0
    normal = NormalDist()
    error = width / (2 * normal.inv_cdf((1 + LEVEL) / 2))
    return float(2 * normal.cdf(-abs(top1_a - top1_b) / error))


def _net(correct_a: np.ndarray, correct_b: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """By how many images the second model is ahead in each group, [g]."""
    ahead = np.asarray(correct_b, dtype=np.int64) - np.asarray(correct_a, dtype=np.int64)
    if groups is None:
        return ahead
    _, group = np.unique(groups, return_inverse=True)
    return np.bincount(group, weights=ahead)
