"""Scores of a comparison while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokred.evaluation.metrics import group_sums, interval
from tokred.tables.row import BASELINE

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Job


def running_scores(job: Job) -> list[tuple[str, str, str]]:
    """Accuracy so far of the dense model and every method; without labels, agreement of the methods.

    Without a classifier it is the cosine of their features.

    Returns:
        Name, value in per cent and 95 % interval of each: the dense model, then the methods, best first.
    """
    evaluation, labelled = job.evaluation, job.source.labelled
    images = np.flatnonzero(evaluation.readable)
    if not len(images):
        return []
    encodes = evaluation.dense.cosine is not None
    target = evaluation.labels[images] if labelled else evaluation.dense.prediction[images]
    groups = job.source.groups[images]
    scores = []
    models = {BASELINE: evaluation.dense} if labelled and not encodes else {}
    for name, model in {**models, **evaluation.methods}.items():
        if name not in evaluation.failed:
            good = model.prediction[images] == target if model.cosine is None else model.cosine[images]
            right, count = group_sums(groups, good, np.ones(len(images)))
            low, high = interval(right, count)
            scores.append((name != BASELINE, -right.sum() / len(images), name, low, high))
    return [
        (name, f"{-100 * loss:.2f}", f"{100 * low:.1f} to {100 * high:.1f}")
        for _, loss, name, low, high in sorted(scores)
    ]
