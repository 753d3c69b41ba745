"""Accuracy, fidelity to the dense model, and their confidence intervals.

Comparisons are paired, since every method sees the same images. Images of one group (such as the same source
digit) are not independent, so intervals resample groups and the test counts groups; elsewhere every image is
a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from tokred.evaluation.predictions import Predictions

LEVEL = 0.95
_ENDS = (50 * (1 - LEVEL), 50 * (1 + LEVEL))  # percentiles
_RESAMPLES = 10_000
_MANY, _FEWER_RESAMPLES = 5_000, 2_000  # groups that are drawn one by one, and resamples of more
_BATCH_ENTRIES = 20_000_000  # resampled numbers in memory at once


@dataclass(frozen=True)
class Scores:
    """Scores of one model, named as the columns of `Row`; None where there is none.

    Accuracies and drop are in per cent, agreement is a fraction, KL and NLL are in nats. With labels there
    are intervals of accuracy and drop; without them there is no accuracy, and agreement has an interval.
    """

    agreement: float | None = None
    kl: float | None = None
    agreement_lo: float | None = None
    agreement_hi: float | None = None
    top1: float | None = None
    top1_lo: float | None = None
    top1_hi: float | None = None
    top5: float | None = None
    drop: float | None = None
    drop_lo: float | None = None
    drop_hi: float | None = None
    p_value: float | None = None
    nll: float | None = None
    nll_rise: float | None = None


def score(
    predictions: Predictions, dense: Predictions, labels: np.ndarray, groups: np.ndarray, seed: int = 0
) -> Scores:
    """Score one model. Intervals are 95 % percentile bootstrap intervals over groups.

    An image without predictions (-1) counts as wrong for both models; agreement, KL and NLL leave it out.
    Predictions of an older tokred have no NLL. `rise_intervals` has the intervals of its rise.
    """
    known = dense.prediction >= 0
    nll, dense_nll = (part.nll[known].astype(float).mean() for part in (predictions, dense))
    correct = ((predictions.prediction == labels) & known).astype(float)
    lost = ((dense.prediction == labels) & known) - correct  # 1 where only the dense model is right
    count, correct_sum, lost_sum = group_sums(groups, np.ones_like(correct), correct, lost)
    top1_lo, top1_hi = interval(correct_sum, count, seed)
    drop_lo, drop_hi = interval(lost_sum, count, seed)
    return Scores(
        top1=float(100 * correct.mean()),
        top1_lo=100 * top1_lo,
        top1_hi=100 * top1_hi,
        top5=float(100 * predictions.top5.mean()),
        drop=float(100 * lost.mean()),
        drop_lo=100 * drop_lo,
        drop_hi=100 * drop_hi,
        p_value=mcnemar(lost_sum),
        agreement=float((predictions.prediction == dense.prediction)[known].mean()),
        kl=float(predictions.kl[known].mean()),
        nll=None if np.isnan(nll) else float(nll),
        nll_rise=None if np.isnan(nll - dense_nll) else float(nll - dense_nll),
    )


def rise_intervals(
    models: Mapping[str, Predictions], dense: Predictions, groups: np.ndarray, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals, over groups, of the rise of each model's mean NLL.

    The models share the resamples. Those without NLL are left out.
    """
    known = dense.prediction >= 0
    rises = {name: (model.nll - dense.nll)[known].astype(float) for name, model in models.items()}
    rises = {name: rise for name, rise in rises.items() if len(rise) and not np.isnan(rise).any()}
    if not rises:
        return {}
    count, *totals = group_sums(groups[known], np.ones(known.sum()), *rises.values())
    ends = np.transpose(intervals(np.stack(totals, axis=1), count, seed)).tolist()
    return {name: (low, high) for name, (low, high) in zip(rises, ends, strict=True)}


def fidelity(predictions: Predictions, dense: Predictions, groups: np.ndarray, seed: int = 0) -> Scores:
    """Score one model without labels, by agreement with the dense model; unpredicted images are left out."""
    known = dense.prediction >= 0
    same = (predictions.prediction == dense.prediction)[known].astype(float)
    total, count = group_sums(groups[known], same, np.ones_like(same))
    low, high = interval(total, count, seed)
    return Scores(
        agreement=float(same.mean()),
        kl=float(predictions.kl[known].mean()),
        agreement_lo=low,
        agreement_hi=high,
    )


def group_sums(groups: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Sums of values, [n] each, over the images of each group, [g] each."""
    _, group = np.unique(groups, return_inverse=True)
    return [np.bincount(group, weights=weights) for weights in values]


def interval(total: np.ndarray, count: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(total) / sum(count), resampling groups, [g] each.

    Groups with the same total and count are one kind, and how often each kind is drawn is multinomial: the
    same distribution as drawing group by group, at a cost that depends on the kinds alone. Of 50,000 images
    there are three.
    """
    groups = len(total)
    if groups < 2:
        mean = float(total.sum() / count.sum())
        return mean, mean
    kinds, times = np.unique(total + 1j * count, return_counts=True)
    rng, shares, ratios = np.random.default_rng(seed), times / groups, []
    step = max(1, _BATCH_ENTRIES // len(kinds))
    for start in range(0, _RESAMPLES, step):
        drawn = rng.multinomial(groups, shares, size=min(step, _RESAMPLES - start)) @ kinds
        ratios.append(drawn.real / drawn.imag)
    lo, hi = np.percentile(np.concatenate(ratios), _ENDS)
    return float(lo), float(hi)


def intervals(total: np.ndarray, count: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As `interval`, for k sums over the same groups at once, which share the resamples.

    Args:
        total: [g, k] sums over each group.
        count: [g] numbers of images.
        seed: seed of the resamples.

    Returns:
        Lower and upper ends, [k] each.
    """
    groups = len(total)
    if groups < 2:
        mean = total.sum(0) / count.sum()
        return mean, mean
    rng, resamples = np.random.default_rng(seed), _RESAMPLES if groups <= _MANY else _FEWER_RESAMPLES
    ratios = []
    step = max(1, _BATCH_ENTRIES // groups)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)
        ratios.append((times @ total) / (times @ count)[:, None])
    lo, hi = np.percentile(np.concatenate(ratios), _ENDS, axis=0)
    return lo, hi


def mean_test(total: np.ndarray, count: np.ndarray) -> float:
    """Two-sided p-value of the hypothesis that a mean difference is zero, from sums over groups, [g] each.

    With single images as groups this is the paired t-test. Larger groups are clusters: the error of the mean
    comes from the deviations of their sums.
    """
    groups, mean = len(total), total.sum() / count.sum()
    if groups < 2 or mean == 0:
        return 1.0
    error = np.sqrt(groups / (groups - 1) * np.square(total - mean * count).sum()) / count.sum()
    return float(2 * stats.t.sf(abs(mean) / error, groups - 1)) if error > 0 else 0.0


def mcnemar(lost: np.ndarray) -> float:
    """Exact two-sided p-value of the hypothesis that neither model is better, from net losses of groups, [g].

    With single images as groups this is McNemar's exact test on the discordant pairs. Of a larger group only
    the sign of its net loss counts, as in a sign test, because its images are not independent.
    """
    worse, better = int((lost > 0).sum()), int((lost < 0).sum())
    if worse + better == 0:
        return 1.0
    return float(stats.binomtest(worse, worse + better, 0.5).pvalue)
