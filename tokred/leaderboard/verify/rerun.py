"""Setting up a finished run again, to rebuild its rows and to evaluate some of its batches again."""

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
from tokred.tables.row import BASELINE, MEASURES, Row, outcome_name
from tokred.utils.devices import precision_name, resolve_device

_NO_CLASS = -3  # a label that differs from every prediction
_AGAINST_DENSE = {
    *("drop", "drop_lo", "drop_hi", "p_value", "agreement", "agreement_lo", "agreement_hi"),
    *("nll_rise", "nll_rise_lo", "nll_rise_hi"),
}

_OF_FEATURES = {f"{name}{end}" for name in MEASURES[1:] for end in ("", "_lo", "_hi")}


@dataclass(frozen=True)
class Places:
    """The present places of a run's files if they were moved, and the device to run on."""

    data: str | None = None
    weights: str | None = None
    adapters: tuple[str, ...] = ()
    device: str = "auto"


_MEASURED = {"tokens", "gflops", "gflops_lo", "gflops_hi", "gflops_sd", "reducer_gflops", "reduction"}


class Again(Predictions):
    """New predictions beside the stored ones, with the distance of the stored class from winning.

    Args:
        before: [n] int64, the stored predictions; -1 if missing.

    Attributes:
        gap: [n] float32, difference in nats of the log-probabilities of the class predicted now and of the
            stored one; infinite if the stored one is not a class of the model.
    """

    def __init__(self, before: np.ndarray) -> None:
        super().__init__(**vars(Predictions.empty(len(before))))
        self.before, self.gap = before, np.full(len(before), np.inf, dtype=np.float32)

    def put(self, images: np.ndarray, logits: Tensor, labels: Tensor, dense_logits: Tensor) -> None:
        """Enter a batch; see `Predictions.put`."""
        super().put(images, logits, labels, dense_logits)
        log = logits.float().log_softmax(1)
        before = torch.from_numpy(self.before[images]).to(log.device)
        known = (before >= 0) & (before < log.shape[1])
        gap = log.amax(1) - log.gather(1, before.clamp(0, log.shape[1] - 1)[:, None])[:, 0]
        self.gap[images] = gap.masked_fill(~known, math.inf).cpu().numpy()


def job_of(about: Mapping[str, Any], places: Places) -> Job:
    """Set up the comparison of a run again from its run.json.

    Raises:
        TokredError: its data, weights, adapters or methods are missing or have changed.
    """
    try:
        job = Job(_config(about, places))
    except TokredError as error:
        sentence = str(error).rstrip(".")
        if isinstance(error, UnknownName):
            advice = "if it comes from a plugin, give that with --plugin"
            raise TokredError(f"{sentence}; {advice}.") from error
        advice = "give the present places of its files with --data, --weights or --adapters"
        raise TokredError(f"The run cannot be repeated: {sentence}; {advice}.") from error
    before, now = about["configuration"], job.configuration
    hashes = {
        "images": ("data", before["data_hash"], now["data_hash"]),
        "weights": ("weights", before["weights_hash"], now["weights_hash"]),
    }
    for name, digest in before.get("adapters", {}).items():
        hashes[f"parameters of {name}"] = ("adapters", digest, now["adapters"].get(name, "none"))
    for what, (option, stored, actual) in hashes.items():
        if stored != actual:
            raise TokredError(
                f"The {what} differ from those of the run (hash {actual[:8]}, not {str(stored)[:8]}); give "
                f"those of the run with --{option}."
            )
    return job


def _config(about: Mapping[str, Any], places: Places) -> Config:
    """The configuration of a run, with the present places of its files."""
    try:
        before = dict(about["configuration"])
        values = {field.name: before[field.name] for field in fields(Config) if field.name in before}
        values |= {name: about.get(name) for name in PLACES} | {"adapters": places.adapters}
        values["plugins"] = ()  # no code runs because a file of results names it
        values |= {name: value for name in ("data", "weights") if (value := getattr(places, name))}
        values["controls"] = bool(values.get("controls", True))
        values["precision"] = precision_name(getattr(torch, before["precision"].removeprefix("torch.")))
        values["device"] = places.device
        if places.device == "auto":  # the kind of device of the run, if this machine has one
            try:
                values["device"] = str(resolve_device(before["device"]))
            except TokredError:
                values["device"] = "auto"
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TokredError(f"its run.json does not contain a valid configuration ({reason})") from error
    return Config.from_mapping(values)


def rebuild(job: Job, evidence: Sequence[Evidence], run: Run | None) -> tuple[dict[str, Row], set[str]]:
    """Build the rows of a run again from its set-up and its predictions.

    Speed, versions and the names of data and weights are taken from run.json: names differ if the files were
    moved, and their hashes were compared before.

    Args:
        job: the run, set up again.
        evidence: the evidence of all rows of the run on the board.
        run: the run; None if a board is checked.

    Returns:
        The rows by the names of their predictions, and the names of the columns that cannot be rebuilt.
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
        name: row
        for name, row in job.measured_rows(stored).items()
        if name in stored.models or row.status != "ok"
    }
    rows = build_rows(facts, known, stored, about.get("speeds") or {})
    unknown = set[str]()
    if run is None:
        unknown |= {"top5", "kl", "smallest_batch", *_OF_FEATURES}
        unknown |= {"unbeaten", "best"} if set(job.models) - names else set()
        unknown |= set() if BASELINE in names else _AGAINST_DENSE
        unknown |= _MEASURED if any(job.models[name].adaptive for name in names & set(job.models)) else set()
    pairs = ((outcome_name(stored.models, row), row) for row in rows)
    return {name: row for name, row in pairs if name is not None}, unknown


def _merged(job: Job, evidence: Sequence[Evidence]) -> RunPredictions:
    """The predictions of a run, merged from the evidence of its rows on a board.

    Evidence contains which predictions are right, so the label of an image that all rows get wrong is
    unknown.
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
        if one.cosine is not None:
            models[one.name].compare(one.places, {"cosine": one.cosine})
    models.setdefault(BASELINE, models[evidence[0].name])
    dense = models[BASELINE]
    missing = dense.prediction < 0 if dense.cosine is None else np.isnan(dense.cosine)
    unreadable = np.flatnonzero(missing).tolist()
    about = {"unreadable": dict.fromkeys(map(str, unreadable), "")}
    return RunPredictions(images=np.arange(total), labels=labels, groups=groups, models=models, about=about)


def batches(n: int, size: int, sample: int, seed: int) -> list[range]:
    """A random choice of whole batches of the run with at least `sample` images, or all of them."""
    ranges = loading.ranges(n, size)
    order = [ranges[place] for place in np.random.default_rng(seed).permutation(len(ranges))]
    sizes = np.cumsum([len(batch) for batch in order])  # the last batch of the run may be shorter
    return sorted(order[: int(np.searchsorted(sizes, sample)) + 1], key=lambda batch: batch.start)


def run(
    job: Job, evidence: Sequence[Evidence], chosen: Sequence[range], progress: Callable[[int], None]
) -> Evaluation:
    """Evaluate some batches with the models of the given evidence; predictions are `Again`.

    The dense model records the attention that all methods of the run use, even if only some are evaluated:
    recording selects the attention kernel, on which the last bits depend.

    Raises:
        TokredError: the evidence is about images that the data do not have, or an image cannot be read.
    """
    n = len(job.source)
    predictions: dict[str, Predictions] = {BASELINE: Predictions.empty(n)}
    for one in evidence:
        if len(one.places) and one.places[-1] >= n:
            counts = f"The row has {len(one.correct)} images, but the data now have {n}"
            raise TokredError(f"{counts}; give the data of the run with --data.")
        before = np.full(n, -1)
        before[one.places] = one.prediction
        predictions[one.name] = Again(before)
    models = {name: model for name, model in job.models.items() if name in predictions}
    methods = {name: predictions[name] for name in models}
    evaluation = Evaluation(np.full(n, UNLABELLED), np.zeros(n, dtype=bool), predictions[BASELINE], methods)
    dense = dense_model(job.loaded.model, job.models.values())
    sampled = Pass(dense, models, evaluation, device=job.device, dtype=job.dtype)
    return sampled.run(job.batches(chosen), lambda rows: progress(len(rows)))
