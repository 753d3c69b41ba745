"""Running some batches of a run once more, as it ran them: the same configuration, weights and images, the same batch boundaries."""

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
from tokred.evaluation.config import Config, Fixed
from tokred.evaluation.engine import Pass, dense_model
from tokred.evaluation.predictions import Evaluation, Predictions
from tokred.tables.row import BASELINE
from tokred.utils.devices import resolve_device

_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


@dataclass(frozen=True)
class Places:
    """Where a run's files are now, if not where they were, and where to run it."""

    data: str | None = None
    weights: str | None = None
    adapters: tuple[str, ...] = ()
    device: str = "auto"


@dataclass
class Again(Predictions):
    """Predictions that remember how far the class of before is from winning now.

    Attributes:
        before: [n] int64, the stored predictions; -1 where there are none.
        gap: [n] float32, nats between the log-probabilities of the class that wins now and of the stored one; infinite where the stored
            one is no class of the model.
    """

    before: np.ndarray
    gap: np.ndarray

    @classmethod
    def of(cls, before: np.ndarray) -> Again:
        empty = Predictions.empty(len(before))
        return cls(
            empty.prediction, empty.top5, empty.kl, before, np.full(len(before), np.inf, dtype=np.float32)
        )

    def put(self, rows: np.ndarray, logits: Tensor, labels: Tensor, dense_logits: Tensor) -> None:
        super().put(rows, logits, labels, dense_logits)
        log = logits.float().log_softmax(1)
        before = torch.from_numpy(self.before[rows]).to(log.device)
        known = (before >= 0) & (before < log.shape[1])
        gap = log.amax(1) - log.gather(1, before.clamp(0, log.shape[1] - 1)[:, None])[:, 0]
        self.gap[rows] = gap.masked_fill(~known, math.inf).cpu().numpy()


def job_of(run: Mapping[str, Any], places: Places) -> Job:
    """A run's comparison, made again from what it says of itself.

    Raises:
        TokredError: its data, weights, adapters or methods are gone, or are others by now.
    """
    try:
        job = Job(_config(run, places))
    except UnknownName as error:
        raise TokredError(
            f"{_sentence(error)}; if a plugin of the run had it, name it with --plugin."
        ) from error
    except TokredError as error:
        raise TokredError(
            f"The run cannot be repeated: {_sentence(error)}; say with --data, --weights or --adapters where they are."
        ) from error
    wanted = run["configuration"]
    for what, column in (("images", "data_hash"), ("weights", "weights_hash")):
        if job.configuration[column] != wanted[column]:
            there = f"hash {job.configuration[column][:8]}, the run's {str(wanted[column])[:8]}"
            raise TokredError(
                f"The {what} are not those of the run any more ({there}); give the run's own with --{_OPTIONS[what]}."
            )
    for name, digest in wanted.get("adapters", {}).items():
        if job.configuration["adapters"].get(name) != digest:
            raise TokredError(
                f"The adapter of {name} is not that of the run (hash {str(digest)[:8]}); give the run's own with --adapters."
            )
    return job


_OPTIONS = {"images": "data", "weights": "weights"}


def _config(run: Mapping[str, Any], places: Places) -> Config:
    known = {field.name for field in fields(Config)}
    try:
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in run["configuration"].items()
            if key in known
        }
        given["controls"] = bool(
            given.get("controls", True)
        )  # runs once had there what control_options has now
        given |= {
            "precision": _PRECISIONS[given["precision"]],
            "adapters": places.adapters,
            "device": _device(given["device"], places),
        }
        given["fixed"] = tuple(
            Fixed(one["method"], one["knob"], one["stages"] and tuple(one["stages"]))
            for one in given.get("fixed", ())
        )
        placed: dict[str, Any] = {name: run.get(name) for name in ("class_map", "devkit", "data_dir")}
        return Config(
            **given,
            **placed,
            data=places.data or run.get("data"),
            weights=places.weights or run.get("weights"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise TokredError(
            f"What its run.json says is no configuration of tokred ({type(error).__name__}: {error})"
        ) from error


def _device(before: str, places: Places) -> str:
    """The kind of device that the run had, where there is one here and no other was asked for."""
    if places.device != "auto":
        return places.device
    try:
        return str(resolve_device(before))
    except TokredError:
        return "auto"


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".")


def batches(n: int, size: int, sample: int, seed: int) -> list[range]:
    """Batches drawn at random, whole ones of the run, that have at least `sample` images or all there are."""
    every = loading.ranges(n, size)
    drawn = [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
    enough = (
        int(np.searchsorted(np.cumsum([len(batch) for batch in drawn]), sample)) + 1
    )  # the last batch may be a short one
    return sorted(drawn[:enough], key=lambda batch: batch.start)


def run(
    job: Job, before: Mapping[str, np.ndarray], chosen: Sequence[range], progress: Callable[[int], None]
) -> Evaluation:
    """Predictions of some batches for the rows named; `before` has their stored predictions, [n] each.

    The unreduced model records what all methods of the run look at, asked for or not: recording selects the kernel, and with it the last
    bits.
    """
    n = len(job.source)
    models = {name: model for name, model in job.models.items() if name in before}
    dense = Again.of(before[BASELINE]) if BASELINE in before else Predictions.empty(n)
    evaluation = Evaluation(
        np.full(n, UNLABELLED), np.zeros(n, dtype=bool), dense, {name: Again.of(before[name]) for name in models}
    )
    images = loading.batches(
        job.source,
        job.preparation,
        chosen,
        loading.default_workers(job.device.type == "cuda"),
        job.config.on_error,
    )
    together = Pass(
        dense_model(job.loaded.model, job.models.values()),
        models,
        evaluation,
        device=job.device,
        dtype=job.dtype,
    )
    return together.run(images, lambda rows: progress(len(rows)))
