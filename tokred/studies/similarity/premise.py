"""The test of the premise: are tokens more similar when they are neighbours, at which layers, and in what sense neighbours?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokred.evaluation.metrics import intervals
from tokred.studies.similarity.accumulator import EDGES
from tokred.studies.similarity.shape import Shape, quantiles, shape, superiority
from tokred.studies.similarity.study import SENSES, Measured
from tokred.utils.text import spaced

HOLDS, FAILS, OPEN = "holds", "does not hold", "not separable"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Finding:
    """One kind of pairs at one layer, in one sense of neighbourhood, against all pairs of the same image.

    Attributes:
        layer: one-based.
        sense: of `SENSES`.
        kind: of `KINDS`.
        pairs: how many, over all images.
        mean_lo: lower end of the mean's 95 % interval; mean_hi the upper one.
        quantiles: at 5, 25, 50, 75 and 95 %.
        above: share of pairs more similar than one half.
        shape: of the distribution.
        difference: mean over images of this kind's mean similarity less that of all pairs; difference_lo and difference_hi its 95 %
            interval. It is 0 for all pairs themselves, and so on.
        effect: the difference in standard deviations of all pairs.
        superiority: the probability that a random pair of this kind is more similar than a random pair of all.
        share: of the images whose difference is positive.
        verdict: "holds", "does not hold" or "not separable", as the interval lies above, below or about zero; empty for all pairs.
    """

    layer: int
    sense: str
    kind: str
    pairs: int
    mean_lo: float
    mean_hi: float
    quantiles: tuple[float, ...]
    above: float
    shape: Shape
    difference: float
    difference_lo: float
    difference_hi: float
    effect: float
    superiority: float
    share: float
    verdict: str


def findings(measured: Measured) -> list[Finding]:
    """All findings, by layer, sense and kind.

    Intervals are percentile bootstrap intervals over the images, or over their groups where images are not independent.
    """
    by_sense = {sense: _of_sense(measured, sense) for sense in SENSES}
    kinds = len(measured.pairs.kinds)
    return [
        found
        for place in range(len(measured.layers))
        for sense in SENSES
        for found in by_sense[sense][place * kinds : (place + 1) * kinds]
    ]


def _of_sense(measured: Measured, sense: str) -> list[Finding]:
    tally, kinds = measured.tallies[sense], list(measured.pairs.kinds)
    means = tally.means.numpy()[:, :, measured.used]  # [layers, kinds, images]
    differences = means - means[:, [kinds.index("all")]]
    total, count = _by_group(np.concatenate([means, differences]), measured.groups[measured.used])
    lo, hi = (ends.reshape(2, *means.shape[:2]) for ends in intervals(total, count, measured.seed))
    counts, sums, above = tally.counts.numpy(), tally.sums.numpy(), tally.above.numpy()
    found = []
    for place, layer in enumerate(measured.layers):
        everything = shape(counts[place, kinds.index("all")], EDGES, sums[place, kinds.index("all")])
        for kind, name in enumerate(kinds):
            histogram, difference = counts[place, kind], differences[place, kind]
            ends = float(lo[1, place, kind]), float(hi[1, place, kind])
            found.append(
                Finding(
                    layer, sense, name, int(histogram.sum()), float(lo[0, place, kind]), float(hi[0, place, kind]),
                    tuple(quantiles(histogram, EDGES, _QUANTILES)), float(above[place, kind] / histogram.sum()),
                    shape(histogram, EDGES, sums[place, kind]), float(difference.mean()), *ends,
                    float(difference.mean() / everything.sd) if everything.sd > 0 else float("nan"),
                    superiority(histogram, counts[place, kinds.index("all")]), float((difference > 0).mean()),
                    "" if name == "all" else verdict(*ends, groups=len(count)),
                )
            )  # fmt: skip
    return found


def verdict(lo: float, hi: float, groups: int) -> str:
    """What an interval of the difference says of the premise. One image or group has no interval."""
    if groups < 2 or lo <= 0 <= hi:
        return OPEN
    return HOLDS if lo > 0 else FAILS


def _by_group(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values [..., images] over each group, [groups, everything else], and the images of each."""
    _, group = np.unique(groups, return_inverse=True)
    flat = values.reshape(-1, values.shape[-1])
    total = np.stack([np.bincount(group, weights=row) for row in flat], axis=1)
    return total, np.bincount(group).astype(float)


def chosen(found: Sequence[Finding], sense: str, kind: str) -> list[Finding]:
    """The findings of one sense and kind, by layer; none where the grid has no such pairs."""
    return [finding for finding in found if finding.sense == sense and finding.kind == kind]


def by_distance(measured: Measured, sense: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean similarity against distance on the grid.

    Returns: distances, in patches rounded to whole ones from 1, [d]; mean similarities, [layers, d].
    """
    pairs = measured.pairs
    row, column = np.divmod(np.arange(pairs.tokens), pairs.columns)
    rounded = np.rint(np.hypot(row, column)).astype(int)
    number = np.bincount(pairs.apart.numpy(), minlength=pairs.tokens) * measured.images
    near = measured.tallies[sense].near.numpy()
    sums = np.stack([np.bincount(rounded, weights=layer) for layer in near])
    return np.arange(1, sums.shape[1]), (sums / np.bincount(rounded, weights=number))[:, 1:]


def lowest(measured: Measured, sense: str) -> list[int]:
    """The distance at which tokens are least similar, at each layer: the largest one if similarity falls all the way."""
    distances, means = by_distance(measured, sense)
    return [int(distances[layer.argmin()]) for layer in means]


def sentences(found: Sequence[Finding]) -> list[str]:
    """What comes of the test for adjacent pairs in each sense: "Neighbours in the picture: holds at all layers." and so on."""
    told = []
    for sense, name in SENSES.items():
        near = chosen(found, sense, "adjacent")
        layers = {words: [f.layer for f in near if f.verdict == words] for words in (HOLDS, FAILS, OPEN)}
        where = {
            words: "all layers" if len(some) == len(near) else f"layers {spaced(some)}"
            for words, some in layers.items()
            if some
        }
        verdicts = ", ".join(f"{words} at {place}" for words, place in where.items())
        told.append(f"{name[0].upper()}{name[1:]}: {verdicts}.")
    return told
