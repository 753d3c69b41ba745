"""The shape of a distribution in a histogram: moments, modes and distance from a normal distribution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal, stats

NORMAL = 0.05  # largest distance from a normal distribution that still counts as normal
SMOOTHING = 0.25  # width of the smoothing before modes are counted, in standard deviations
PROMINENCE = 0.05  # least prominence of a further mode, as a fraction of the highest
_CONSTANT = 1e-6  # a smaller standard deviation is due to rounding: the distribution is one point


class Shape(NamedTuple):
    """Moments and shape of a distribution. Skew, kurtosis, bimodality and distance of a single point are NaN.

    Attributes:
        mean: mean.
        sd: standard deviation.
        shape: "bimodal" or "normal", the paper's words, or else "one mode", "3 modes" and so on.
        modes: number of maxima of the smoothed histogram.
        bimodality: Sarle's coefficient, (skew² + 1) / kurtosis: 1/3 for a normal one, 1 for two points.
        skew: third standardised moment.
        excess_kurtosis: fourth standardised moment minus 3, that of a normal distribution.
        normal_distance: largest difference from the distribution function of the fitted normal distribution.
    """

    mean: float
    sd: float
    shape: str = "one mode"
    modes: int = 1
    bimodality: float = np.nan
    skew: float = np.nan
    excess_kurtosis: float = np.nan
    normal_distance: float = np.nan


def shape(counts: np.ndarray, edges: np.ndarray, sums: np.ndarray) -> Shape:
    """The shape of a distribution.

    Args:
        counts: [bins] counts in bins of equal width.
        edges: [bins + 1] edges of the bins.
        sums: [4] sums of the values and of their second, third and fourth powers.
    """
    n = counts.sum()
    m1, m2, m3, m4 = (float(value) / n for value in sums)
    variance = max(0.0, m2 - m1**2)
    sd = variance**0.5
    if sd < _CONSTANT:
        return Shape(m1, sd)
    skew = (m3 - 3 * m1 * m2 + 2 * m1**3) / sd**3
    kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2
    distance = float(np.abs(np.cumsum(counts) / n - stats.norm.cdf(edges[1:], m1, sd)).max())
    maxima = modes(counts, edges, sd)
    one = "normal" if distance <= NORMAL else "one mode"
    word = {1: one, 2: "bimodal"}.get(maxima, f"{maxima} modes")
    return Shape(m1, sd, word, maxima, (skew**2 + 1) / kurtosis, skew, kurtosis - 3, distance)


def modes(counts: np.ndarray, edges: np.ndarray, sd: float) -> int:
    """Maxima of a histogram after Gaussian smoothing by a quarter of `sd`, or by Silverman's width if wider.

    A further maximum counts if its prominence is 5 % of the highest. The histogram is mirrored at its ends,
    so a maximum there counts too.
    """
    width = max(SMOOTHING, 1.06 * counts.sum() ** -0.2) * sd / (edges[1] - edges[0])
    density = counts.astype(float)
    if width > 0.5:
        density = ndimage.gaussian_filter1d(density, width, mode="reflect")
    peaks, _ = signal.find_peaks(np.pad(density, 1), prominence=PROMINENCE * density.max())
    return max(1, len(peaks))


def quantiles(counts: np.ndarray, edges: np.ndarray, at: tuple[float, ...]) -> list[float]:
    """Quantiles of a histogram, exact to the width of a bin."""
    below = np.cumsum(counts)
    target = np.asarray(at) * below[-1]
    bins = np.searchsorted(below, target)
    share = (target - (below - counts)[bins]) / np.maximum(counts[bins], 1)
    return [float(value) for value in edges[bins] + share * (edges[bins + 1] - edges[bins])]


def superiority(counts: np.ndarray, others: np.ndarray) -> float:
    """The probability that a draw of one histogram exceeds a draw of another; ties count half."""
    p, q = counts / counts.sum(), others / others.sum()
    return float((p * (np.cumsum(q) - q / 2)).sum())
