"""How much of the accuracy on each class a method loses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokred.evaluation.metrics import interval
from tokred.report.run_data import Material
from tokred.tables.row import BASELINE

FEW = 24  # classes that one table shows; of more, the extremes of each method
EXTREMES = 15
LITTLE = 30  # images of a class; fewer say little about it


@dataclass(frozen=True)
class Drops:
    """Points of top-1 that methods lose on each class, with 95 % intervals.

    Attributes:
        methods: k names, as the page calls them.
        names: C names of the classes that have images.
        images: [C] how many.
        dense: [C] the unreduced model's top-1 in per cent.
        drop: [k, C] points.
        lo, hi: [k, C] limits; NaN where they were not asked for, and where all images of a class have one source.
    """

    methods: list[str]
    names: list[str]
    images: np.ndarray
    dense: np.ndarray
    drop: np.ndarray
    lo: np.ndarray
    hi: np.ndarray

    @property
    def few(self) -> bool:
        """Whether one table can show all classes."""
        return len(self.names) <= FEW

    def certain(self) -> np.ndarray:
        """[k, C] whether an interval leaves out zero."""
        return (self.lo > 0) | (self.hi < 0)

    def worst(self, k: int, count: int = EXTREMES) -> np.ndarray:
        """The classes on which a method loses most, the worst first; of equals the one with more images."""
        return np.lexsort((-self.images, -self.drop[k]))[:count]

    def best(self, k: int, count: int = EXTREMES) -> np.ndarray:
        """The classes on which it loses least or gains, the best first."""
        return np.lexsort((-self.images, self.drop[k]))[:count]


def drops(material: Material) -> Drops | None:
    """The drops of all methods that were measured; None without labels or predictions."""
    measured = [
        row
        for row in material.ordered
        if row.status == "ok" and row.method != BASELINE and material.prediction(row) is not None
    ]
    dense, labels = material.predictions.get(f"{BASELINE}/prediction"), material.predictions.get("labels")
    if dense is None or labels is None or not measured:
        return None
    chosen = labels >= 0  # without a label there is no class
    if material.run["configuration"].get("on_error") == "skip":
        chosen &= dense >= 0
    if not chosen.any():
        return None
    labels, right = labels[chosen], dense[chosen] == labels[chosen]
    classes, column, images = np.unique(labels, return_inverse=True, return_counts=True)
    lost = [
        right.astype(np.int64)
        - (material.predictions[f"{material.outcome(row)}/prediction"][chosen] == labels)
        for row in measured
    ]
    drop = np.stack([100 * np.bincount(column, weights=one) / images for one in lost])
    before = 100 * np.bincount(column, weights=right) / images
    lo, hi = np.full_like(drop, np.nan), np.full_like(drop, np.nan)
    names = [material.class_name(c) for c in classes.tolist()]
    found = Drops([material.called(row) for row in measured], names, images, before, drop, lo, hi)
    groups = material.predictions.get("groups", np.arange(len(chosen)))[chosen]
    members = np.split(np.argsort(column, kind="stable"), np.cumsum(images)[:-1])  # the images of each class
    seed = material.run["configuration"].get("seed", 0)
    for k, one in enumerate(lost):
        for c in _shown(found, k):
            lo[k, c], hi[k, c] = _interval(one[members[c]], groups[members[c]], seed)
    return found


def _shown(found: Drops, k: int) -> set[int]:
    """The classes that the page shows of a method."""
    return set(range(len(found.names))) if found.few else {int(c) for c in (*found.worst(k), *found.best(k))}


def _interval(lost: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """The interval of the mean of [n], in points; images that share a source are drawn together. NaN where all do."""
    _, group = np.unique(groups, return_inverse=True)
    count = np.bincount(group)
    if len(count) < 2:
        return np.nan, np.nan
    lo, hi = interval(np.bincount(group, weights=lost), count, seed)
    return 100 * lo, 100 * hi
