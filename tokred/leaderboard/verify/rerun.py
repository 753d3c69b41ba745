"""Setting up a finished run again, to build its rows and evaluate some of its batches again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.data import loading
from tokred.errors import UNLABELLED, TokredError, UnknownName
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import PLACES, Config
from tokred.evaluation.engine import Pass, dense_model
from tokred.evaluation.predictions import Evaluation, Predictions, RunPredictions
from tokred.evaluation.rows import build_rows
from tokred.evaluation.run_folder import Run
from tokred.leaderboard.evidence import Evidence
from tokred.tables.row import BASELINE, Row, outcome_name
from tokred.utils.devices import precision_name, resolve_device

_NO_CLASS = -3  # a label that no prediction has
_AGAINST_DENSE = {
    *("drop", "drop_lo", "drop_hi", "p_value", "agreement", "agreement_lo", "agreement_hi"),
    *("nll_rise", "nll_rise_lo", "nll_rise_hi"),
}


@dataclass(frozen=True)
class Places:
    """Where a run's files are now, if they have moved, and where to run it."""

    data: str | None = None
    weights: str | None = None
    adapters: tuple[str, ...] = ()
    device: str = "auto"


@dataclass
class Again(Predictions):
    """Predictions with the distance of the stored class from winning.

    Attributes:
        before: [n] int64, the stored predictions; -1 where there are none.
        gap: [n] float32, nats between the log-probabilities of the class that wins now and of the stored one;
            infinite where the stored one is no class of the model.
    """

    before: np.ndarray
    gap: np.ndarray

    @classmethod
    def of(cls, before: np.ndarray) -> Again:
        """No predictions yet, beside the stored ones."""
        gap = np.full(len(before), np.inf, dtype=np.float32)
        return cls(**vars(Predictions.empty(len(before))), before=before, gap=gap)

    def put(self, images: np.ndarray, logits: Tensor, labels: Tensor, dense_logits: Tensor) -> None:
        """Enter a batch; see `Predictions.put`."""
        super().put(images, logits, labels, dense_logits)
        log = logits.float().log_softmax(1)
        before = torch.from_numpy(self.before[images]).to(log.device)
        known = (before >= 0) & (before < log.shape[1])
        gap = log.amax(1) - log.gather(1, before.clamp(0, log.shape[1] - 1)[:, None])[:, 0]
        self.gap[images] = gap.masked_fill(~known, math.inf).cpu().numpy()


def job_of(about: Mapping[str, Any], places: Places) -> Job:
    """A run's comparison, set up again from its run.json.

    Raises:
        TokredError: its data, weights, adapters or methods are missing or have changed.
    """
    try:
        job = Job(_config(about, places))
    except TokredError as error:
        sentence = str(error).rstrip(".")
        if isinstance(error, UnknownName):
            advice = "if a plugin of the run had it, name it with --plugin"
            raise TokredError(f"{sentence}; {advice}.") from error
        advice = "say with --data, --weights or --adapters where they are"
        raise TokredError(f"The run cannot be repeated: {sentence}; {advice}.") from error
    before, now = about["configuration"], job.configuration
    for what, column, option in (("images", "data_hash", "data"), ("weights", "weights_hash", "weights")):
        if now[column] != before[column]:
            there = f"hash {now[column][:8]}, the run's {str(before[column])[:8]}"
            advice = f"give the run's own with --{option}"
            raise TokredError(f"The {what} are not those of the run any more ({there}); {advice}.")
    for name, digest in before.get("adapters", {}).items():
        if now["adapters"].get(name) != digest:
            there = f"hash {str(digest)[:8]}"
            advice = "give the run's own with --adapters"
            raise TokredError(f"The adapter of {name} is not that of the run ({there}); {advice}.")
    return job


def _config(about: Mapping[str, Any], places: Places) -> Config:
    """The configuration of a run, with the places where its files are now."""
    try:
        before = dict(about["configuration"])
        values = {field.name: before[field.name] for field in fields(Config) if field.name in before}
        values |= {name: about.get(name) for name in PLACES} | {"adapters": places.adapters}
        values |= {name: value for name in ("data", "weights") if (value := getattr(places, name))}
        values["controls"] = bool(values.get("controls", True))
        values["precision"] = precision_name(getattr(torch, before["precision"].removeprefix("torch.")))
        values["device"] = places.device
        if places.device == "auto":  # then on the kind of device that the run had, if there is one here
            try:
                values["device"] = str(resolve_device(before["device"]))
            except TokredError:
                values["device"] = "auto"
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TokredError(f"What its run.json says is no configuration of tokred ({reason})") from error
    return Config.from_mapping(values)


def rebuild(job: Job, evidence: Sequence[Evidence], run: Run | None) -> tuple[dict[str, Row], set[str]]:
    """The rows of a run, built again from its set-up and its predictions, and the columns that cannot be.

    Speed and versions are those of run.json, and so are the names of data and weights: of places that have
    moved they are others, and the hashes were compared.

    Args:
        job: the run, set up again.
        evidence: that of all rows of the run on the board.
        run: the run's folder, if it is not a board that is checked.

    Returns:
        The rows by the names of their predictions, and names of columns.
    """
    about, names = evidence[0].run, {one.name for one in evidence}
    stored = run.predictions if run is not None and run.predictions else _merged(job, evidence)
    before = about["facts"]
    facts = {
        **job.run_facts(),
        "limited": job.source.limited or len(stored.images) < len(job.source),
        **{name: before.get(name, "") for name in ("dataset", "weights", "device")},
        "versions": before.get("versions", {}),
    }
    known = {
        name: row for name, row in job.candidate_rows().items() if name in stored.models or row.status != "ok"
    }
    rows = build_rows(facts, known, stored, about.get("speeds") or {})
    unknown = set[str]()
    if run is None:
        unknown |= {"top5", "kl", "smallest_batch"}
        unknown |= {"unbeaten", "best"} if set(job.models) - names else set()
        unknown |= set() if BASELINE in names else _AGAINST_DENSE
    named = ((outcome_name(stored.models, row), row) for row in rows)
    return {name: row for name, row in named if name is not None}, unknown


def _merged(job: Job, evidence: Sequence[Evidence]) -> RunPredictions:
    """The predictions of a run, put together from the evidence of its rows on a board.

    The evidence says which predictions are right, and not what the label of an image is that all have wrong.
    """
    total = max(len(one.correct) + len(one.left_out) for one in evidence)
    labels = np.full(total, _NO_CLASS if job.source.labelled else UNLABELLED)
    groups, models = np.arange(total), {one.name: Predictions.empty(total) for one in evidence}
    for one in evidence:
        labels[one.places[one.correct]] = one.prediction[one.correct]
        groups[one.places] = one.groups
        models[one.name].prediction[one.places] = one.prediction
        if one.nll is not None:
            models[one.name].nll[one.places] = one.nll
    models.setdefault(BASELINE, models[evidence[0].name])
    unreadable = np.flatnonzero(models[BASELINE].prediction < 0).tolist()
    about = {"unreadable": dict.fromkeys(map(str, unreadable), "")}
    return RunPredictions(images=np.arange(total), labels=labels, groups=groups, models=models, about=about)


def batches(n: int, size: int, sample: int, seed: int) -> list[range]:
    """Batches drawn at random, whole ones of the run, that have at least `sample` images or all there are."""
    every = loading.ranges(n, size)
    drawn = [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
    sizes = np.cumsum([len(batch) for batch in drawn])  # the last batch of the run may be a short one
    return sorted(drawn[: int(np.searchsorted(sizes, sample)) + 1], key=lambda batch: batch.start)


def run(
    job: Job, evidence: Sequence[Evidence], chosen: Sequence[range], progress: Callable[[int], None]
) -> Evaluation:
    """Predictions of some batches, as `Again`, by the models of the given evidence.

    The dense model records what all methods of the run look at, whichever of them are asked for: recording
    selects the kernel, and with it the last bits.

    Raises:
        TokredError: the evidence is about images that the data do not have, or one cannot be read.
    """
    n = len(job.source)
    predictions: dict[str, Predictions] = {BASELINE: Predictions.empty(n)}
    for one in evidence:
        if len(one.places) and one.places[-1] >= n:
            counts = f"The row has {len(one.correct)} images, and its data have {n} now"
            raise TokredError(f"{counts}; give the run's own with --data.")
        before = np.full(n, -1)
        before[one.places] = one.prediction
        predictions[one.name] = Again.of(before)
    models = {name: model for name, model in job.models.items() if name in predictions}
    methods = {name: predictions[name] for name in models}
    evaluation = Evaluation(np.full(n, UNLABELLED), np.zeros(n, dtype=bool), predictions[BASELINE], methods)
    workers = loading.default_workers(job.device.type == "cuda")
    images = loading.batches(job.source, job.preparation, chosen, workers, job.config.on_error)
    dense = dense_model(job.loaded.model, job.models.values())
    sampled = Pass(dense, models, evaluation, device=job.device, dtype=job.dtype)
    return sampled.run(images, lambda rows: progress(len(rows)))
