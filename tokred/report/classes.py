"""The drop of each method on each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokred.evaluation.metrics import interval
from tokred.report.run_data import RunData
from tokred.tables.row import BASELINE

FEW = 24  # most classes in one table; if there are more, the extremes of each method are shown
EXTREMES = 15
LITTLE = 30  # a class with fewer images is marked


@dataclass(frozen=True)
class Drops:
    """Drops of top-1 on each class, with 95 % intervals.

    Attributes:
        methods: k names of methods on the page.
        names: C names of the classes that have images.
        images: [C] numbers of images.
        dense: [C] top-1 of the dense model in per cent.
        drop: [k, C] drops in points.
        lo, hi: [k, C] limits; NaN if the page does not show them, and for a class of a single group.
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
        """[k, C] whether an interval excludes zero."""
        return (self.lo > 0) | (self.hi < 0)

    def worst(self, k: int) -> np.ndarray:
        """The classes with the largest drops of a method, largest first; of ties the one with more images."""
        return np.lexsort((-self.images, -self.drop[k]))[:EXTREMES]

    def best(self, k: int) -> np.ndarray:
        """The classes with the smallest drops, or gains, of a method, smallest first."""
        return np.lexsort((-self.images, self.drop[k]))[:EXTREMES]


def drops(data: RunData) -> Drops | None:
    """The drops of all methods that were measured; None without labels, predictions or a classifier."""
    methods = [row for row in data.ordered if row.status == "ok" and row.method != BASELINE]
    every = {data.called(row): data.predicted(data.name(row)) for row in methods}
    predictions = {name: predicted for name, predicted in every.items() if predicted is not None}
    dense = data.predicted(BASELINE)
    if data.predictions is None or data.predictions.encodes or dense is None or not predictions:
        return None
    chosen = data.predictions.labels >= 0
    if data.about["configuration"].get("on_error") == "skip":
        chosen &= dense >= 0
    if not chosen.any():
        return None
    labels, groups = data.predictions.labels[chosen], data.predictions.groups[chosen]
    right = dense[chosen] == labels
    classes, column, images = np.unique(labels, return_inverse=True, return_counts=True)
    lost = [right.astype(np.int64) - (predicted[chosen] == labels) for predicted in predictions.values()]
    drop = np.stack([100 * np.bincount(column, weights=one) / images for one in lost])
    table = Drops(
        methods=list(predictions),
        names=[data.class_name(c) for c in classes.tolist()],
        images=images,
        dense=100 * np.bincount(column, weights=right) / images,
        drop=drop,
        lo=np.full_like(drop, np.nan),
        hi=np.full_like(drop, np.nan),
    )
    members = np.split(np.argsort(column, kind="stable"), np.cumsum(images)[:-1])  # the images of each class
    seed = data.about["configuration"].get("seed", 0)
    for k, one in enumerate(lost):
        for c in range(len(classes)) if table.few else {*table.worst(k), *table.best(k)}:
            table.lo[k, c], table.hi[k, c] = _interval(one[members[c]], groups[members[c]], seed)
    return table


def _interval(lost: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """The interval of the mean of `lost` [n], in points, resampled by group; NaN for a single group."""
    _, group = np.unique(groups, return_inverse=True)
    count = np.bincount(group)
    if len(count) < 2:
        return np.nan, np.nan
    lo, hi = interval(np.bincount(group, weights=lost), count, seed)
    return 100 * lo, 100 * hi
