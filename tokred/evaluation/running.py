"""Scores of a comparison while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokred.evaluation.metrics import group_sums, interval
from tokred.tables.row import BASELINE

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Job
    from tokred.evaluation.predictions import Predictions


def running_scores(job: Job) -> list[tuple[str, str, str]]:
    """Accuracy so far of the dense model and every method; without labels, agreement of the methods.

    Without a classifier it is the cosine of their features. Before any batch is complete, it is that of the
    methods which have run on the first ones.

    Returns:
        Name, value in per cent and 95 % interval of each: the dense model, then the methods, best first.
    """
    evaluation, labelled = job.evaluation, job.source.labelled
    complete = evaluation.readable
    encodes = evaluation.dense.cosine is not None
    target = evaluation.labels if labelled else evaluation.dense.prediction
    scores = []
    models = {BASELINE: evaluation.dense} if labelled and not encodes else {}
    for name, model in {**models, **evaluation.methods}.items():
        images = np.flatnonzero(complete if complete.any() else _first(model, target))
        if len(images) and name not in evaluation.failed:
            good = model.prediction == target if model.cosine is None else model.cosine
            right, count = group_sums(job.source.groups[images], good[images], np.ones(len(images)))
            low, high = interval(right, count)
            scores.append((name != BASELINE, -right.sum() / len(images), name, low, high))
    return [
        (name, f"{-100 * loss:.2f}", f"{100 * low:.1f} to {100 * high:.1f}")
        for _, loss, name, low, high in sorted(scores)
    ]


def _first(model: Predictions, target: np.ndarray) -> np.ndarray:
    """[n] bool, images that have a result of one model and what it is compared with."""
    if model.cosine is None:
        return (model.prediction >= 0) & (target >= 0)
    return np.isfinite(model.cosine)
