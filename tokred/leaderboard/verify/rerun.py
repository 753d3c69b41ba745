"""Setting up a finished run again, to build its rows and evaluate some of its batches again."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from tokred.leaderboard.ranking_groups import RankedRow
from tokred.leaderboard.verify.compare import FROM_RUN
from tokred.tables.row import BASELINE, Row, outcome_name
from tokred.utils.devices import resolve_device

_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
_NO_CLASS = -3  # a label that no prediction has
_AGAINST_DENSE = ("drop", "drop_lo", "drop_hi", "p_value", "agreement", "agreement_lo", "agreement_hi")


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
    except UnknownName as error:
        sentence = str(error).rstrip(".")
        raise TokredError(f"{sentence}; if a plugin of the run had it, name it with --plugin.") from error
    except TokredError as error:
        sentence = str(error).rstrip(".")
        raise TokredError(
            f"The run cannot be repeated: {sentence}; say with --data, --weights or --adapters where they "
            "are."
        ) from error
    wanted = about["configuration"]
    for what, column, option in (("images", "data_hash", "data"), ("weights", "weights_hash", "weights")):
        if job.configuration[column] != wanted[column]:
            there = f"hash {job.configuration[column][:8]}, the run's {str(wanted[column])[:8]}"
            raise TokredError(
                f"The {what} are not those of the run any more ({there}); give the run's own with --{option}."
            )
    for name, digest in wanted.get("adapters", {}).items():
        if job.configuration["adapters"].get(name) != digest:
            raise TokredError(
                f"The adapter of {name} is not that of the run (hash {str(digest)[:8]}); give the run's "
                "own with "
                "--adapters."
            )
    return job


def _config(about: Mapping[str, Any], places: Places) -> Config:
    known = {field.name for field in fields(Config)}
    try:
        before = dict(about["configuration"])
        values = {name: value for name, value in before.items() if name in known}
        values |= {name: about.get(name) for name in PLACES}
        values |= {
            name: place for name in ("data", "weights") if (place := getattr(places, name)) is not None
        }
        values |= {"adapters": places.adapters, "controls": bool(values.get("controls", True))}
        values |= {"precision": _PRECISIONS[before["precision"]], "device": _device(before["device"], places)}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TokredError(
            f"What its run.json says is no configuration of tokred ({type(error).__name__}: {error})"
        ) from error
    return Config.from_mapping(values)


def _device(before: str, places: Places) -> str:
    """The kind of device that the run had, if there is one here and no other was asked for."""
    if places.device != "auto":
        return places.device
    try:
        return str(resolve_device(before))
    except TokredError:
        return "auto"


def rebuild(
    job: Job, about: Mapping[str, Any], beside: Sequence[RankedRow], run: Run | None
) -> tuple[dict[str, Row], Collection[str]]:
    """The rows of a run, built again from its set-up and its predictions, and the columns that cannot be.

    Speed and versions are those of run.json.

    Args:
        job: the run, set up again.
        about: what run.json says of the run.
        beside: all rows of the run on the board that is checked.
        run: the run's folder, if it is not a board that is checked.
    """
    stored = _of_board(job, beside) if run is None else run.predictions
    assert stored is not None
    before: dict[str, Any] = dict(about.get("facts") or {})
    facts = replace(
        job.run_facts(),
        limited=job.source.limited or len(stored.images) < len(job.source),
        device=about["configuration"]["device"],
        versions=dict(before.get("versions", {})),
    )
    if before:  # of places that have moved the names are other ones, and the hashes were compared
        facts = replace(facts, dataset=before.get("dataset", ""), weights=before.get("weights", ""))
    candidates = {
        name: fact for name, fact in job.facts().items() if name in stored.models or fact.status != "ok"
    }
    rows = build_rows(facts, candidates, stored, dict(about.get("speeds") or {}))
    unchecked = set() if before else {*FROM_RUN, "dataset", "weights"}
    if run is None:
        unchecked |= {"top5", "kl", "smallest_batch"}
        unchecked |= {"unbeaten", "best"} if set(job.models) - set(stored.models) else set()
        names = {one.evidence.name for one in beside if one.evidence}
        unchecked |= set(_AGAINST_DENSE) if BASELINE not in names else set()
    arrays = [f"{name}/prediction" for name in stored.models]
    named = ((outcome_name(arrays, row.method, row.budget, row.knob, row.stages), row) for row in rows)
    return {name: row for name, row in named if name is not None}, unchecked


def _of_board(job: Job, beside: Sequence[RankedRow]) -> RunPredictions:
    """The predictions of a run, put together from the evidence of its rows on a board.

    The evidence says which predictions are right, and not what the label of an image is that all have wrong.
    """
    evidence = [one.evidence for one in beside if one.evidence is not None]
    total = max(len(one.correct) + len(one.left_out) for one in evidence)
    labels = np.full(total, _NO_CLASS if job.source.labelled else UNLABELLED)
    groups, models = np.arange(total), dict[str, Predictions]()
    for one in evidence:
        right = one.places[one.correct]
        labels[right] = one.prediction[one.correct]
        groups[one.places] = one.groups
        models[one.name] = Predictions.empty(total)
        models[one.name].prediction[one.places] = one.prediction
    models.setdefault(BASELINE, models[evidence[0].name])
    unreadable = np.flatnonzero(models[BASELINE].prediction < 0)
    about = {"unreadable": {str(image): "" for image in unreadable}}
    return RunPredictions(images=np.arange(total), labels=labels, groups=groups, models=models, about=about)


def batches(n: int, size: int, sample: int, seed: int) -> list[range]:
    """Batches drawn at random, whole ones of the run, that have at least `sample` images or all there are."""
    every = loading.ranges(n, size)
    drawn = [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
    sizes = np.cumsum([len(batch) for batch in drawn])  # the last batch of the run may be a short one
    return sorted(drawn[: int(np.searchsorted(sizes, sample)) + 1], key=lambda batch: batch.start)


def run(
    job: Job, before: Mapping[str, np.ndarray], chosen: Sequence[range], progress: Callable[[int], None]
) -> Evaluation:
    """Predictions of some batches, by the models named in `before` beside their stored predictions, [n] each.

    The dense model records what all methods of the run look at, whichever of them are asked for: recording
    selects the kernel, and with it the last bits.
    """
    n = len(job.source)
    models = {name: model for name, model in job.models.items() if name in before}
    dense = Again.of(before[BASELINE]) if BASELINE in before else Predictions.empty(n)
    methods: dict[str, Predictions] = {name: Again.of(before[name]) for name in models}
    evaluation = Evaluation(np.full(n, UNLABELLED), np.zeros(n, dtype=bool), dense, methods)
    workers = loading.default_workers(job.device.type == "cuda")
    images = loading.batches(job.source, job.preparation, chosen, workers, job.config.on_error)
    taps = dense_model(job.loaded.model, job.models.values())
    evaluate = Pass(taps, models, evaluation, device=job.device, dtype=job.dtype)
    return evaluate.run(images, lambda rows: progress(len(rows)))
