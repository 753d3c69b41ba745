"""The shape of a distribution that is known as a histogram: quantiles, modes, and how far from normal it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal, stats

NORMAL = 0.05  # the largest distance from a normal distribution that still counts as normal
SMOOTHING = 0.25  # of the histogram before modes are counted, in standard deviations
PROMINENCE = 0.05  # of the highest mode, that a further one must have
_CONSTANT = 1e-6  # a smaller standard deviation is rounding: the distribution is one point


@dataclass(frozen=True)
class Shape:
    """Moments and shape of a distribution; of one that is a single point skew, kurtosis and distance are NaN.

    Attributes:
        mean: of it.
        sd: standard deviation.
        skew: third standardised moment.
        excess: fourth standardised moment less 3, the kurtosis of a normal distribution.
        bimodality: Sarle's coefficient, (skew² + 1) / kurtosis: 5/9 for a uniform distribution, 1/3 for a normal one, 1 for two points.
        modes: maxima of the smoothed histogram.
        distance: the largest difference between its distribution function and that of the normal one of the same mean and deviation.
    """

    mean: float
    sd: float
    skew: float
    excess: float
    bimodality: float
    modes: int
    distance: float

    @property
    def name(self) -> str:
        """In the paper's words: "bimodal", "normal", or "one mode" that is neither."""
        if self.modes > 1:
            return "bimodal" if self.modes == 2 else f"{self.modes} modes"
        return "normal" if self.distance <= NORMAL else "one mode"


def shape(counts: np.ndarray, edges: np.ndarray, sums: np.ndarray) -> Shape:
    """The shape of a distribution.

    Args:
        counts: [bins] of equal width.
        edges: [bins + 1] of them.
        sums: [4], of the values and of their second, third and fourth powers.
    """
    n = counts.sum()
    m1, m2, m3, m4 = (float(value) / n for value in sums)
    variance = max(0.0, m2 - m1**2)
    sd = variance**0.5
    if sd < _CONSTANT:
        return Shape(m1, sd, np.nan, np.nan, np.nan, 1, np.nan)
    skew = (m3 - 3 * m1 * m2 + 2 * m1**3) / sd**3
    kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2
    below = np.cumsum(counts) / n
    distance = float(np.abs(below - stats.norm.cdf(edges[1:], m1, sd)).max())
    return Shape(m1, sd, skew, kurtosis - 3, (skew**2 + 1) / kurtosis, modes(counts, edges, sd), distance)


def modes(counts: np.ndarray, edges: np.ndarray, sd: float) -> int:
    """Maxima of a histogram after smoothing by a Gaussian of a quarter of its standard deviation, or of Silverman's width if that is wider.

    A further maximum counts if it stands out by 5 % of the highest. The ends of the range mirror, so that mass piled up there is a mode.
    """
    width = max(SMOOTHING, 1.06 * counts.sum() ** -0.2) * sd / (edges[1] - edges[0])
    smooth = (
        ndimage.gaussian_filter1d(counts.astype(float), width, mode="reflect")
        if width > 0.5
        else counts.astype(float)
    )
    peaks, _ = signal.find_peaks(np.pad(smooth, 1), prominence=PROMINENCE * smooth.max())
    return max(1, len(peaks))


def quantiles(counts: np.ndarray, edges: np.ndarray, at: tuple[float, ...]) -> list[float]:
    """Quantiles, exact to the width of a bin."""
    below = np.cumsum(counts)
    target = np.asarray(at) * below[-1]
    held = np.searchsorted(below, target)  # the bin in which each lies
    share = (target - (below - counts)[held]) / np.maximum(counts[held], 1)
    return [float(value) for value in edges[held] + share * (edges[held + 1] - edges[held])]


def superiority(counts: np.ndarray, others: np.ndarray) -> float:
    """The probability that a draw of one histogram exceeds a draw of another on the same bins, ties counting half."""
    p, q = counts / counts.sum(), others / others.sum()
    return float((p * (np.cumsum(q) - q / 2)).sum())
