"""The test of the premise: the layers at which neighbouring tokens are more similar than all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tokred.evaluation.metrics import group_sums, intervals
from tokred.studies.similarity.accumulator import EDGES
from tokred.studies.similarity.shape import quantiles, shape, superiority
from tokred.studies.similarity.study import SENSES, Measurement
from tokred.utils.text import spaced

HALF = 0.5  # the similarity above which the paper calls tokens similar
HOLDS, FAILS, OPEN = "holds", "does not hold", "not separable"
_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def findings(measurement: Measurement) -> pd.DataFrame:
    """One row for each layer, sense of neighbourhood and kind of pairs, with the columns of similarity.csv.

    `difference` is the mean similarity of a kind minus that of all pairs in the same image, averaged over
    images; its 95 % bootstrap interval resamples images, or groups of images that are not independent.
    `effect` is the difference in standard deviations of all pairs, `superiority` the probability that a pair
    of this kind is more similar than any pair, `share_of_images` the fraction of images with a positive
    difference.
    """
    rows = [row for sense in SENSES for row in _rows(measurement, sense)]
    return pd.DataFrame(rows).sort_values("layer", kind="stable", ignore_index=True)


def _rows(measurement: Measurement, sense: str) -> Iterator[dict[str, Any]]:
    sums, kinds = measurement.sums[sense], list(measurement.pairs.kinds)
    counts, every = sums.counts.numpy(), kinds.index("all")
    means = sums.means.numpy()[:, :, measurement.readable]  # [layers, kinds, images]
    differences = means - means[:, [every]]
    values = np.concatenate([means, differences]).reshape(-1, measurement.images)
    groups = measurement.groups[measurement.readable]
    *each, size = group_sums(groups, *values, np.ones(len(groups)))
    total = np.stack(each, axis=1)
    lo, hi = (ends.reshape(2, *means.shape[:2]) for ends in intervals(total, size, measurement.seed))
    shapes = {at: shape(counts[at], EDGES, sums.sums.numpy()[at]) for at in np.ndindex(*means.shape[:2])}
    for at, form in shapes.items():
        layer, kind = at
        difference, spread = differences[at].mean(), shapes[layer, every].sd
        yield {
            "model": measurement.model,
            "data": measurement.data,
            "images": measurement.images,
            "features": measurement.features,
            "layer": measurement.layers[layer],
            "neighbours": sense,
            "kind": kinds[kind],
            "pairs": counts[at].sum(),
            "mean": form.mean,
            "mean_lo": lo[0][at],
            "mean_hi": hi[0][at],
            "sd": form.sd,
            **dict(zip(_QUANTILES, quantiles(counts[at], EDGES, tuple(_QUANTILES.values())), strict=True)),
            "share_above_half": counts[at][EDGES[:-1] >= HALF].sum() / counts[at].sum(),
            **form._asdict(),
            "difference": difference,
            "difference_lo": lo[1][at],
            "difference_hi": hi[1][at],
            "effect": difference / spread if spread > 0 else np.nan,
            "superiority": superiority(counts[at], counts[layer, every]),
            "share_of_images": (differences[at] > 0).mean(),
            "verdict": "" if kind == every else verdict(lo[1][at], hi[1][at], groups=len(size)),
        }


def verdict(lo: float, hi: float, groups: int) -> str:
    """The verdict on the premise by an interval of the difference. A single group has no interval."""
    if groups < 2 or lo <= 0 <= hi:
        return OPEN
    return HOLDS if lo > 0 else FAILS


def select(frame: pd.DataFrame, sense: str, kind: str) -> pd.DataFrame:
    """The findings of one sense and kind, by layer; empty if the grid has no such pairs."""
    return frame[(frame["neighbours"] == sense) & (frame["kind"] == kind)]


def by_distance(measurement: Measurement) -> pd.DataFrame:
    """Mean similarity by layer, sense and distance on the grid in whole patches, as in distance.csv."""
    pairs = measurement.pairs
    row, column = np.divmod(np.arange(pairs.tokens), pairs.columns)
    rounded = np.rint(np.hypot(row, column)).astype(int)
    pairs_apart = np.bincount(pairs.apart.numpy(), minlength=pairs.tokens) * measurement.images
    number = np.bincount(rounded, weights=pairs_apart)
    return pd.DataFrame(
        [
            {"layer": layer, "neighbours": sense, "distance": distance, "mean": mean}
            for sense, sums in measurement.sums.items()
            for layer, near in zip(measurement.layers, sums.near.numpy(), strict=True)
            for distance, mean in enumerate(np.bincount(rounded, weights=near) / number)
            if distance
        ]
    )


def lowest(distances: pd.DataFrame) -> dict[int, int]:
    """The distance at which tokens of the unshuffled images are least similar, by layer."""
    both = distances[distances["neighbours"] == "both"].reset_index(drop=True)
    least = both.loc[both.groupby("layer")["mean"].idxmin()]
    return dict(zip(least["layer"], least["distance"], strict=True))


def sentences(frame: pd.DataFrame) -> list[str]:
    """The verdicts on adjacent pairs, such as "Neighbours in the picture: holds at all layers."."""
    lines = []
    for sense, name in SENSES.items():
        near = select(frame, sense, "adjacent")
        parts = []
        for words in (HOLDS, FAILS, OPEN):
            layers = near["layer"][near["verdict"] == words]
            if len(layers):
                where = "all layers" if len(layers) == len(near) else f"layers {spaced(layers)}"
                parts.append(f"{words} at {where}")
        lines.append(f"{name[0].upper()}{name[1:]}: {', '.join(parts)}.")
    return lines
