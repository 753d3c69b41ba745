"""A comparison with checked input: images, weights and candidates, and the columns that they determine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokred.core.costs import CostTable
from tokred.data import loading
from tokred.data.loading import Batch
from tokred.evaluation import builder, candidates, published_accuracy
from tokred.evaluation.calibration import Calibration
from tokred.evaluation.config import PLACES, Config
from tokred.evaluation.inputs import open_inputs
from tokred.tables.row import BASELINE, Row
from tokred.utils.devices import default_batch_size, precision_name, resolve_precision
from tokred.utils.distributed import Processes
from tokred.utils.text import plain_name


class Setup:
    """A configuration with its images, weights and candidates, checked against each other.

    Args:
        config: what to compare.

    Attributes:
        source: the images.
        loaded: the dense model with its weights.
        preparation: how images become the model's input.
        costs: the cost table of the dense model.
        candidates: methods and dense controls.
        models: models to evaluate, by the names of their predictions.
        configuration: everything that determines the results, as run.json stores it.
        processes: the processes that share the run.

    Raises:
        TokredError: the configuration is invalid. This is known before any image is read.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = Processes.device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self.batch_size = config.batch_size or default_batch_size(self.device)
        self.source, self.loaded, self.preparation = open_inputs(config, classifier=False)
        self.costs = CostTable(self.loaded.model)
        calibration = Calibration(config, self.loaded, self.source.images_hash, self.device, self.dtype)
        self.candidates = builder.build(config, self.loaded, self.costs, calibration)
        self.models = {
            candidate.name: candidate.model for candidate in self.candidates if candidate.model is not None
        }
        self.configuration = {
            **{name: value for name, value in config.to_mapping().items() if name not in PLACES},
            "device": self.device.type,
            "precision": str(self.dtype),
            "batch_size": self.batch_size,
            "options": self._options(),
            "weights_hash": self.loaded.weights_hash,
            "data_hash": self.source.hash,
            "adapters": {
                candidate.name: candidate.adapter.hash for candidate in self.candidates if candidate.adapter
            },
            "control_options": {
                candidate.name: candidate.control.options
                for candidate in self.candidates
                if candidate.control
            },
        }
        thresholds = {name: model.plan.knob for name, model in self.models.items() if model.adaptive}
        if thresholds:
            self.configuration["thresholds"] = thresholds
        self.processes = Processes(self.device)

    def _options(self) -> dict[str, Mapping[str, Any]]:
        """The complete options by method, including defaults."""
        methods = [candidate for candidate in self.candidates if candidate.control is None]
        return {
            candidate.method: candidate.match.plan.options if candidate.match else candidate.options
            for candidate in methods
            if candidate.match or candidate.options
        }

    @property
    def key(self) -> str:
        """A short hash of `configuration`."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """One line about model, images and budgets."""
        images = f"{self.source.name} {self.source.split} ({len(self.source)} images)"
        saved = ", ".join(f"{100 * budget:g}" for budget in self.config.budgets)
        schedule = "" if self.config.counts.uniform else f", {self.config.counts.name} schedule"
        return f"{self.config.model} on {images}" + (f", {saved} % fewer FLOPs" if saved else "") + schedule

    @property
    def folder_name(self) -> str:
        """The default name of the output folder."""
        budgets = dict.fromkeys((*self.config.budgets[:1], *self.config.budgets[-1:]))
        counts = self.config.counts
        saved = "-".join([*(f"{budget:g}" for budget in budgets), *([counts.name] if counts.tokens else [])])
        return f"{plain_name(self.config.model)}-{plain_name(self.source.name)}-{saved}-{self.key}"

    def batches(self, chosen: Sequence[range], workers: int | None = None) -> Iterator[Batch]:
        """Load some batches of the images; see `loading.batches`."""
        on_gpu = self.device.type == "cuda"
        return loading.batches(
            self.source, self.preparation, chosen, workers, self.config.on_error, on_gpu=on_gpu
        )

    def resolved_config(self) -> Config:
        """The configuration with the device, precision and batch size of this run instead of "auto"."""
        return replace(
            self.config,
            device=self.device.type,
            precision=precision_name(self.dtype),
            batch_size=self.batch_size,
        )

    def describe(self) -> str:
        """One line: data, weights, precision, device."""
        what = f"{self.source.about} {self.source.title}".strip()
        precision = str(self.dtype).removeprefix("torch.")
        first = f"the first {len(self.source)}" if self.source.limited else str(len(self.source))
        labels = "" if self.source.labelled else " without labels"
        data = f"{what}, {self.source.split} split, {first} images{labels}"
        notes = (self.source.note, published_accuracy.note(self.loaded, self.source, self.preparation))
        note = "".join(f" {note}" for note in notes if note)
        where = f"{self.device}"
        if self.processes.world > 1:
            where += f" in {self.processes.world} processes"
        inputs = f"Data: {data}. Weights: {self.loaded.weights}. Input: {self.preparation}."
        return f"{inputs} Precision: {precision} on {where}.{note}"

    def candidate_rows(self) -> dict[str, Row]:
        """The columns of each row that are known before the evaluation, by the name of its predictions."""
        hashes = (self.source.hash, self.source.images_hash)
        rows = {candidate.name: candidate.row(self.costs, hashes) for candidate in self.candidates}
        return {BASELINE: candidates.baseline_row(self.costs), **rows}

    def shared_columns(self) -> dict[str, Any]:
        """The columns of the set-up that all rows share, and the published top-1 (%) of the baseline."""
        return {
            "model": self.config.model,
            "dataset": self.source.name,
            "split": self.source.split,
            "limited": self.source.limited,
            "weights": self.loaded.weights,
            "weights_hash": self.loaded.weights_hash,
            "data_hash": self.source.hash,
            "img_size": self.preparation.img_size,
            "crop_pct": self.preparation.crop_pct,
            "interpolation": self.preparation.interpolation,
            "precision": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "batch_size": self.batch_size,
            "seed": self.config.seed,
            "on_error": "" if self.config.on_error == "fail" else self.config.on_error,
            "published": published_accuracy.published(self.loaded, self.source, self.preparation),
        }
