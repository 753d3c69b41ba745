"""Rows of a comparison: what is known of each candidate, completed by scores, speed and significance.

Nothing here needs the model, the images or torch: run.json has the columns that are known before any image is
seen, and predictions.npz the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tokred.errors import TokredError
from tokred.evaluation.feature_scores import feature_columns
from tokred.evaluation.metrics import Scores, fidelity, rise_intervals, score
from tokred.evaluation.predictions import Predictions, RunPredictions
from tokred.evaluation.significance import judge
from tokred.tables.row import BASELINE, Row, rank

PUBLISHED_TOLERANCE = 0.05  # points of top-1: other decoders and processors move it by some hundredths
_SPEED = ("images_per_s", "latency_ms", "speedup", "promise_share", "peak_mem_mb")
_AGAINST_ITSELF = ("p_value", "agreement", "agreement_lo", "agreement_hi", "kl", "drop_lo", "drop_hi")

Models = Mapping[str, Predictions]
"""What is stored of each model for the images that count."""


def build_rows(
    run: Mapping[str, Any],
    candidates: Mapping[str, Row],
    predictions: RunPredictions,
    speeds: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    """The rows of a run: the baseline first, then methods by accuracy.

    Args:
        run: the columns that all rows share, those of versions and the date under `versions`; and under
            `published` the published top-1 (%) of the dense model, None where this is another evaluation.
        candidates: what is known before any image is seen, by the names of the predictions; the dense model's
            is "baseline".
        predictions: predictions of all models for the images that were evaluated.
        speeds: figures of `Speed` by name, where they were measured.

    Raises:
        TokredError: none of the images could be read.
    """
    shared = {name: value for name, value in run.items() if name not in ("versions", "published")}
    places, unreadable = predictions.counted(run["on_error"]), predictions.unreadable
    if unreadable and len(unreadable) == len(predictions.images):
        raise TokredError(
            f"None of the {len(unreadable)} images could be read: {unreadable[min(unreadable)]}"
        )
    shared |= {
        **run["versions"],
        "n_images": len(places),
        "n_failed": len(unreadable),
        "smallest_batch": predictions.about.get("smallest_batch"),
    }
    rows = {name: replace(row, **shared) for name, row in candidates.items()}
    for name, reason in predictions.failed.items():
        if name in rows:
            rows[name] = replace(rows[name], status="failed", error=reason)
    labels = predictions.labels[places] if predictions.labelled else None
    groups, seed = predictions.groups[places], run["seed"]
    models = {name: model.take(places) for name, model in predictions.models.items()} if len(places) else {}
    further = _further_columns(models, labels, groups, seed)
    scores = {}
    if not predictions.encodes:
        scores = {name: _score(name, models, labels, groups, seed) for name in models}
    merits = {
        place: _merit(models[name], models[BASELINE], labels)
        for place, name in enumerate(rows)
        if name in models and name != BASELINE
    }
    flags = judge(list(rows.values()), merits, groups)
    whole = not run["limited"] and len(places) == len(predictions.images)
    published = published_columns(run["published"] if whole else None, scores.get(BASELINE))
    return rank(
        replace(
            row,
            **vars(scores.get(name, Scores())),
            **further.get(name, {}),
            **_timing(speeds.get(name, {})),
            **published[name == BASELINE],
            **vars(flag),
        )
        for (name, row), flag in zip(rows.items(), flags, strict=True)
    )


def _timing(speed: Mapping[str, Any]) -> dict[str, Any]:
    """The columns among the figures of a `Speed`; None is "not measured"."""
    return {column: speed.get(column) for column in _SPEED}


def _score(name: str, models: Models, labels: np.ndarray | None, groups: np.ndarray, seed: int) -> Scores:
    """A model's scores; those of the baseline against itself are left out, except for its zeros."""
    own, dense = models[name], models[BASELINE]
    scores = fidelity(own, dense, groups, seed) if labels is None else score(own, dense, labels, groups, seed)
    itself = dict.fromkeys(_AGAINST_ITSELF)
    return replace(scores, **itself) if name == BASELINE else scores


def _merit(own: Predictions, dense: Predictions, labels: np.ndarray | None) -> np.ndarray:
    """What a model gets right, [n]: the label, else the dense model's prediction, else its features."""
    if own.cosine is not None:
        return own.cosine
    return np.asarray(own.prediction == (dense.prediction if labels is None else labels))


def _further_columns(
    models: Models, labels: np.ndarray | None, groups: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """The columns of features, or else the limits of the rise of NLL, by the names of the models."""
    if not models:
        return {}
    if models[BASELINE].cosine is not None:
        return dict(feature_columns(models, labels, groups, seed))
    reduced = {name: model for name, model in models.items() if name != BASELINE}
    ends = rise_intervals(reduced, models[BASELINE], groups, seed)
    return {name: {"nll_rise_lo": low, "nll_rise_hi": high} for name, (low, high) in ends.items()}


def published_columns(
    published: float | None, baseline: Scores | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a published top-1 (%) in the row of a method, and in that of the baseline."""
    if published is None or baseline is None or baseline.top1 is None:
        return {}, {}
    off = {"baseline_off": round(abs(baseline.top1 - published), 6) > PUBLISHED_TOLERANCE}
    return off, {**off, "published_top1": published}
