"""Scores of models without a classifier: fidelity of their features to the dense model's, and k-NN accuracy.

Nearest neighbours are the images of other groups with the most similar pooled features. Nothing here imports
torch, so that what is on disk can be scored without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tokred.evaluation.metrics import group_sums, intervals
from tokred.tables.row import BASELINE

if TYPE_CHECKING:
    from tokred.evaluation.predictions import Predictions

NEIGHBOURS = 10  # of an image; at most half of the images of other groups
_COLUMNS = {
    "cosine": "feature_cosine",
    "error": "feature_error",
    "patch_cosine": "patch_cosine",
    "patch_error": "patch_error",
}
_BLOCK = 4_000_000  # similarities in memory at once
_STEPS = 2**40  # similarities are rounded to multiples of its inverse


def feature_columns(
    models: Mapping[str, Predictions], labels: np.ndarray | None, groups: np.ndarray, seed: int = 0
) -> dict[str, dict[str, float]]:
    """The columns of features in the rows of all models, with 95 % bootstrap intervals over groups.

    The models share the resamples. Images without features are left out. What needs pooled features is left
    out where only their distances are stored, as on a board. The baseline has k-NN accuracy alone.

    Args:
        models: what is stored of each model, that of the dense model under "baseline".
        labels: [n]; None without labels.
        groups: [n], images that are not independent share a number.
        seed: seed of the resamples.
    """
    known = ~np.isnan(np.asarray(models[BASELINE].cosine))
    if not known.any():
        return {}
    groups, labels = groups[known], None if labels is None else labels[known]
    values = _values({name: model.take(known) for name, model in models.items()}, labels, groups)
    if not values:
        return {}
    count, *totals = group_sums(groups, np.ones(len(groups)), *values.values())
    low, high = intervals(np.stack(totals, axis=1), count, seed)
    columns: dict[str, dict[str, float]] = {name: {} for name in models}
    for place, ((name, column), value) in enumerate(values.items()):
        scale = 100 if column in ("knn_top1", "knn_drop") else 1
        ends = {"": value.mean(), "_lo": low[place], "_hi": high[place]}
        columns[name] |= {f"{column}{end}": float(scale * number) for end, number in ends.items()}
    return columns


def _values(
    models: Mapping[str, Predictions], labels: np.ndarray | None, groups: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """What is averaged over images, [n] each, by the names of model and column."""
    values: dict[tuple[str, str], np.ndarray] = {}
    dense = models[BASELINE].features
    nearest = None if dense is None else neighbours(dense, groups)
    right = None if labels is None or nearest is None else (vote(labels[nearest]) == labels).astype(float)
    if right is not None:
        values[BASELINE, "knn_top1"] = right
    for name, model in models.items():
        if name == BASELINE:
            continue
        for part, column in _COLUMNS.items():
            if (array := getattr(model, part)) is not None:
                values[name, column] = array.astype(float)
        if model.features is not None and nearest is not None:
            own = neighbours(model.features, groups)
            values[name, "knn_agreement"] = (own[:, :, None] == nearest[:, None]).any(2).mean(1)
            if labels is not None and right is not None:
                hits = (vote(labels[own]) == labels).astype(float)
                values |= {(name, "knn_top1"): hits, (name, "knn_drop"): right - hits}
    return values


def neighbours(features: np.ndarray, groups: np.ndarray, k: int | None = None) -> np.ndarray:
    """The k images of other groups with the most similar features, [n, k] int64, the nearest first.

    Similarity is the cosine; of equally similar images the first counts as nearer. There are fewer than k
    where there are fewer such images.

    Args:
        features: [n, D].
        groups: [n], images of one group are no neighbours of each other.
        k: number of neighbours; by default `NEIGHBOURS`, or half of the other images if these are fewer.
    """
    n, largest = len(features), int(np.unique(groups, return_counts=True)[1].max())
    others = n - largest  # of the images in the largest group
    k = min(NEIGHBOURS, max(1, others // 2)) if k is None else k
    k = min(k, others)
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest, step = np.empty((n, k), dtype=np.int64), max(1, _BLOCK // n)
    if not k:
        return nearest
    for start in range(0, n, step):
        block = slice(start, start + step)
        # Whole numbers that no two images share, so that rounding and ties are the same on any machine.
        key = np.rint(unit[block] @ unit.T * _STEPS).astype(np.int64) * n - np.arange(n)
        key[groups[block, None] == groups] = np.iinfo(np.int64).min
        best = np.argpartition(-(key + 1), k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(key, best, axis=1), axis=1)
        nearest[block] = np.take_along_axis(best, order, axis=1)
    return nearest


def vote(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of each row [n, k], [n]; of several the first; -1 without neighbours."""
    if not labels.shape[1]:
        return np.full(len(labels), -1)
    votes = (labels[:, :, None] == labels[:, None]).sum(2)
    return np.take_along_axis(labels, votes.argmax(1)[:, None], axis=1)[:, 0]
