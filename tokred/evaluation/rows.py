"""Rows of a comparison, each built once from typed parts whose fields are named as the columns.

The parts are what all rows of a run share (`RunFacts`), what is known of a candidate before any image is seen
(`Facts`), scores, speed, and significance flags. Predictions and these parts are all that a row needs, so a
finished run's rows can be built again from its folder, without its model, its images or torch (`recompute`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from tokred.errors import TokredError
from tokred.evaluation.metrics import Scores, fidelity, score
from tokred.evaluation.predictions import RunPredictions
from tokred.evaluation.run_folder import Run
from tokred.evaluation.significance import judge
from tokred.tables.row import BASELINE, Row, rank

PUBLISHED_TOLERANCE = 0.05  # points of top-1: other decoders and processors move it by some hundredths


@dataclass(frozen=True)
class RunFacts:
    """Columns that all rows of a run share.

    Attributes:
        versions: version columns and the date.
        published: the published top-1 (%) of the dense model, where this run is its published evaluation;
            None elsewhere.

    The other fields are columns of `Row`.
    """

    model: str
    dataset: str
    split: str
    limited: bool
    weights: str
    weights_hash: str
    data_hash: str
    img_size: int
    crop_pct: float
    interpolation: str
    precision: str
    device: str
    batch_size: int
    seed: int
    on_error: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    published: float | None = None


@dataclass(frozen=True)
class Facts:
    """Columns that are known of a candidate before any image is seen; all fields are columns of `Row`."""

    method: str
    budget: float | None = None
    options: str = ""
    control: bool = False
    reduction: float | None = None
    gflops: float | None = None
    reducer_gflops: float | None = None
    protocol: str = ""
    stages: str = ""
    tokens: str = ""
    knob: str = ""
    training: str = "none"
    images_seen: int | None = None
    adapter: str = ""
    unfitted: bool = False
    fitted_here: bool = False
    status: str = "ok"
    error: str = ""

    @property
    def gap(self) -> float:
        """How much more than its budget it saves; see `Row.gap`."""
        return Row(self.method, budget=self.budget, reduction=self.reduction).gap


@dataclass(frozen=True)
class Timing:
    """Columns of speed; None is "not measured". `Speed` says what the figures mean."""

    images_per_s: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    promise_share: float | None = None
    peak_mem_mb: float | None = None

    @classmethod
    def of(cls, speed: Mapping[str, Any]) -> Timing:
        """The columns among the figures of a `Speed`."""
        return cls(**{field.name: speed.get(field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Published:
    """Columns of the published accuracy.

    Attributes:
        published_top1: published top-1 (%) of the dense model, in the baseline's row.
        baseline_off: whether the baseline that was measured differs from it by more than
            `PUBLISHED_TOLERANCE`.
    """

    published_top1: float | None = None
    baseline_off: bool = False


def build_rows(
    run: RunFacts,
    candidates: Mapping[str, Facts],
    predictions: RunPredictions,
    speeds: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    """The rows of a run: the baseline first, then methods by accuracy.

    Args:
        run: columns that all rows share.
        candidates: facts by the names of the predictions, those of the dense model under "baseline".
        predictions: predictions of all models for the images that were evaluated.
        speeds: columns of speed by name, where it was measured.

    Raises:
        TokredError: none of the images could be read.
    """
    places, unreadable = predictions.counted(run.on_error), predictions.unreadable
    if unreadable and len(unreadable) == len(predictions.images):
        raise TokredError(
            f"None of the {len(unreadable)} images could be read: {unreadable[min(unreadable)]}"
        )
    scores = {name: _score(name, run, predictions, places) for name in predictions.models if len(places)}
    names, truth = list(candidates), predictions.labels if predictions.labelled else _dense(predictions)
    correct = {
        place: (predictions.models[name].prediction == truth)[places]
        for place, name in enumerate(names)
        if name in scores and name != BASELINE
    }
    facts = [_with_failure(candidates[name], predictions.failed.get(name)) for name in names]
    flags = judge(facts, correct, predictions.groups[places])
    whole = not run.limited and len(places) == len(predictions.images)
    published = published_columns(run.published if whole else None, scores.get(BASELINE))
    common = {
        **{name: value for name, value in vars(run).items() if name not in ("versions", "published")},
        **run.versions,
        "n_images": len(places),
        "n_failed": len(unreadable),
        "smallest_batch": predictions.about.get("smallest_batch"),
    }
    rows = []
    for name, fact, flag in zip(names, facts, flags, strict=True):
        parts = (
            fact,
            scores.get(name, Scores()),
            Timing.of(speeds.get(name, {})),
            published[name == BASELINE],
            flag,
        )
        cells = {column: value for part in parts for column, value in vars(part).items()}
        rows.append(Row(**common, **cells))
    return rank(rows)


def recompute(run: Run) -> list[Row]:
    """The rows of a finished run, built again from its predictions and run.json.

    Raises:
        TokredError: the predictions are missing, or run.json does not have the facts, as that of an older
            tokred.
    """
    if run.predictions is None:
        raise TokredError(f"{run.path} holds no predictions.npz, from which its rows would follow.")
    try:
        facts = RunFacts(**run.about["facts"])
        candidates = {name: Facts(**columns) for name, columns in run.about["candidates"].items()}
        speeds = dict(run.about.get("speeds", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise TokredError(
            f"{run.path / 'run.json'} lacks the facts from which rows are built; an older tokred wrote it."
        ) from error
    return build_rows(facts, candidates, run.predictions, speeds)


def _score(name: str, run: RunFacts, predictions: RunPredictions, places: np.ndarray) -> Scores:
    """A model's scores; those of the baseline against itself are left out, except for its drop of 0."""
    own, dense = predictions.models[name].take(places), predictions.models[BASELINE].take(places)
    labels, groups = predictions.labels[places], predictions.groups[places]
    if predictions.labelled:
        scores = score(own, dense, labels, groups, run.seed)
    else:
        scores = fidelity(own, dense, groups, run.seed)
    itself = dict.fromkeys(
        ("p_value", "agreement", "agreement_lo", "agreement_hi", "kl", "drop_lo", "drop_hi")
    )
    return replace(scores, **itself) if name == BASELINE else scores


def _dense(predictions: RunPredictions) -> np.ndarray:
    return predictions.models[BASELINE].prediction


def _with_failure(facts: Facts, reason: str | None) -> Facts:
    """The facts of a candidate that failed while it ran; unchanged where there is no reason."""
    return facts if reason is None else replace(facts, status="failed", error=reason)


def published_columns(published: float | None, baseline: Scores | None) -> tuple[Published, Published]:
    """The columns of a published top-1 (%) in the row of a method, and in that of the baseline."""
    if published is None or baseline is None or baseline.top1 is None:
        return Published(), Published()
    off = round(abs(baseline.top1 - published), 6) > PUBLISHED_TOLERANCE
    return Published(baseline_off=off), Published(baseline_off=off, published_top1=published)
