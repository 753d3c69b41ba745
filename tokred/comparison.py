"""`compare`: match the budget, evaluate all methods in one pass, leave a leaderboard."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tokred import adapters, registry, results, zoo
from tokred.adapters import Adapter
from tokred.budget import match_each
from tokred.config import Config, method_names
from tokred.data import sources
from tokred.errors import TokredError, Unfitted, Unreachable
from tokred.evaluate import Evaluation, dense_model, evaluate, resolve_device, resolve_precision
from tokred.flops import CostTable
from tokred.metrics import Outcomes, score
from tokred.provenance import versions
from tokred.results import BASELINE, Folder, Row
from tokred.schedule import Plan, default_options
from tokred.vit import ReducedViT

_STATUS: dict[type, str] = {Unreachable: "unreachable", Unfitted: "unfitted"}


@dataclass
class Comparison:
    """A finished comparison: its rows, best first, and where they were written."""

    rows: list[Row]
    title: str
    out: Path | None
    seconds: float

    @property
    def frame(self) -> pd.DataFrame:
        """The leaderboard as a data frame."""
        return results.frame(self.rows)

    @property
    def failed(self) -> list[Row]:
        """Rows of methods that should have run; one that nobody has fitted yet is not among them."""
        return [row for row in self.rows if row.status not in ("ok", "unfitted")]


class Job:
    """A comparison whose input has been checked and whose plans are made: `describe` it, then `run` it.

    Raises:
        TokredError: anything wrong with the configuration, before any image is read.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self.batch_size = config.batch_size or (16 if self.device.type == "cpu" else 256)
        self.names = method_names(config)
        self.source = sources.open_source(config.data, config.split).limit(config.limit)
        self.loaded = zoo.load_for(config.model, config.weights, embedded=config.data in (None, sources.EMBEDDED))
        _check_classes(self.loaded, self.source)
        self.preparation = sources.prepare(self.loaded.model, self.source.embedded)
        self.costs = CostTable(self.loaded.model)
        self.matches, self.refused = match_each(
            self.costs, self.names, config.budget, protocol=config.protocol, stages=config.stages, options=config.options
        )
        self.models = self._build_models()
        if not self.models:
            raise next(iter(self.refused.values()))
        self.configuration = {
            **asdict(config),
            "device": str(self.device),
            "precision": str(self.dtype),
            "batch_size": self.batch_size,
            "methods": self.names,
            "weights_hash": self.loaded.weights_hash,
            "data_hash": self.source.hash,
            "adapters": {name: adapter.hash for name, adapter in self.adapters.items()},
        }
        self.configuration = json.loads(json.dumps(self.configuration))  # as run.json will hold it

    def _build_models(self) -> dict[str, ReducedViT]:
        """The reduced models, with their fitted parameters where there are any; what has none and needs some is refused."""
        config, backbone, weights_hash = self.config, self.loaded.model, self.loaded.weights_hash
        given = adapters.find(config.adapters)
        strangers = [adapter for adapter in given if adapter.card["method"] not in self.names]
        if given and len(strangers) == len(given):
            raise TokredError(f"The adapter {given[0].path} is for {given[0].card['method']}, which is not compared; see --methods.")
        self.adapters: dict[str, Adapter] = {}
        models = {}
        for name, found in self.matches.items():
            try:
                adapter = adapters.choose(given, found.plan, weights_hash)
                if adapter is not None:
                    models[name] = adapter.apply(backbone, found.plan, weights_hash, config.seed)
                    self.adapters[name] = adapter
                    continue
                model = ReducedViT(backbone, found.plan, seed=config.seed)
                if model.learned and not config.allow_unfitted:
                    self.refused[name] = adapters.unfitted(found.plan, weights_hash, self._fit_command(found.plan))
                else:
                    models[name] = model
            except TokredError as error:
                self.refused[name] = error
        return models

    def _fit_command(self, plan: Plan) -> str:
        """The command that fits a method for this comparison."""
        config = self.config
        stages = None if config.stages is None else _spaced(config.stages)
        protocol = None if config.protocol == "native" else config.protocol
        return adapters.fit_command(plan, config.model, stages=stages, protocol=protocol, data=config.data, weights=config.weights)

    @property
    def key(self) -> str:
        """A short hash of everything that decides the numbers."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        images = f"{self.source.name} {self.source.split} ({len(self.source)} images)"
        return f"{self.config.model} on {images}, {100 * self.config.budget:g} % fewer FLOPs"

    def describe(self) -> str:
        """One line: data, weights, precision, device."""
        what = "the embedded benchmark PhotoDigits" if self.source.embedded else f"{self.source.name}"
        precision = str(self.dtype).removeprefix("torch.")
        first = f"the first {len(self.source)}" if self.source.limited else str(len(self.source))
        data = f"{what}, {self.source.split} split, {first} images"
        note = f" {self.source.note}" if self.source.note else ""
        return f"Data: {data}. Weights: {self.loaded.weights}. Precision: {precision} on {self.device}.{note}"

    def run(self, out: Path | None = None, workers: int = 1, progress: Callable[[int], None] = lambda images: None) -> Comparison:
        """Evaluate, and write the folder `out` unless it is None. `progress` hears of each finished batch's images.

        Raises:
            TokredError: `out` is not writable or belongs to another run; an image cannot be read; the dense model fails.
        """
        folder = Folder(out, self.configuration) if out else None
        start = time.monotonic()
        models = self.models
        batches = sources.batches(self.source, self.preparation, self.batch_size, workers)
        dense = dense_model(self.loaded.model, models.values())
        evaluation = evaluate(dense, models, batches, len(self.source), device=self.device, dtype=self.dtype, progress=progress)
        seconds = time.monotonic() - start
        rows = results.rank(self._rows(evaluation))
        if folder:
            self._write(folder, rows, evaluation, seconds)
        return Comparison(rows, self.title, out, seconds)

    def _rows(self, evaluation: Evaluation) -> list[Row]:
        rows = [self._scored(self._row(BASELINE), evaluation, evaluation.dense)]
        for name in self.names:
            row = self._row(name)
            if name in evaluation.methods:
                self._scored(row, evaluation, evaluation.methods[name])
            else:
                row.status = _STATUS.get(type(self.refused.get(name)), "failed")
                row.error = str(self.refused[name]) if name in self.refused else evaluation.failed[name]
            rows.append(row)
        return rows

    def _scored(self, row: Row, evaluation: Evaluation, outcomes: Outcomes) -> Row:
        scores = score(outcomes, evaluation.dense, evaluation.labels, self.source.groups, self.config.seed)
        for name, value in asdict(scores).items():
            setattr(row, name, value)
        if row.method == BASELINE:
            row.p_value = row.agreement = row.kl = row.drop_lo = row.drop_hi = None
        return row

    def _row(self, name: str) -> Row:
        """Everything about a row but its scores."""
        config, found = self.config, self.matches.get(name)
        row = Row(
            name,
            model=config.model,
            dataset=self.source.name,
            split=self.source.split,
            n_images=len(self.source),
            n_failed=0,
            limited=self.source.limited,
            training="none",
            weights=self.loaded.weights,
            weights_hash=self.loaded.weights_hash,
            data_hash=self.source.hash,
            img_size=self.preparation.img_size,
            crop_pct=self.preparation.crop_pct,
            interpolation=self.preparation.interpolation,
            precision=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            batch_size=self.batch_size,
            seed=config.seed,
            **versions(),
        )
        if name == BASELINE:
            row.gflops, row.reduction, row.reducer_gflops = self.costs.dense / 1e9, 0.0, 0.0
            return row
        row.budget, row.protocol = config.budget, config.protocol if config.stages is None else "custom"
        row.control = registry.get(name).control
        chosen = found.plan.options if found else config.options.get(name, {})
        row.options = " ".join(f"{key}={value}" for key, value in {**default_options(registry.get(name)), **chosen}.items())
        self._describe_training(row, name)
        if found:
            row.reduction, row.gflops, row.reducer_gflops = found.reduction, found.flops / 1e9, found.reducer_flops / 1e9
            row.stages, row.tokens, row.knob = _spaced(found.plan.stages), _spaced(found.plan.tokens), found.knob
        return row

    def _describe_training(self, row: Row, name: str) -> None:
        """How a method came by its parameters."""
        adapter = self.adapters.get(name)
        if adapter is not None:
            row.training, row.images_seen, row.adapter = adapter.card["training"], adapter.card["images_seen"], adapter.hash
            row.fitted_here = adapter.saw(self.source.hash)
        elif name in self.models and self.models[name].learned:
            row.unfitted = True

    def _write(self, folder: Folder, rows: list[Row], evaluation: Evaluation, seconds: float) -> None:
        run = {
            "configuration": self.configuration,
            "title": self.title,
            "seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
            "card": self.loaded.card,
            "adapters": {name: {"file": adapter.path.name, **adapter.card} for name, adapter in self.adapters.items()},
            "errors": {row.method: row.error for row in rows if row.error},
            **versions(),
        }
        arrays = {"labels": evaluation.labels, "groups": self.source.groups}
        for name, outcomes in {BASELINE: evaluation.dense, **evaluation.methods}.items():
            arrays |= {f"{name}/prediction": outcomes.prediction, f"{name}/top5": outcomes.top5, f"{name}/kl": outcomes.kl}
        folder.write("run.json", json.dumps(run, indent=2) + "\n")
        folder.write_predictions(arrays)
        folder.write("table.md", results.markdown(rows))
        folder.write("table.tex", results.latex(rows))
        folder.write("report.html", results.report(rows, self.title, run))
        folder.write("leaderboard.csv", results.csv_text(rows))


def compare(model: str = "deit_s", budget: float = 0.3, out: str | Path | None = None, workers: int = 1, **settings: Any) -> Comparison:
    """Compare methods on one model at one budget; `settings` are the other fields of `Config`.

    Raises:
        TokredError: see `Job`.
    """
    if settings.get("weights") is not None:
        settings["weights"] = str(settings["weights"])
    if "adapters" in settings:
        settings["adapters"] = tuple(map(str, settings["adapters"]))
    return Job(Config(model=model, budget=budget, **settings)).run(Path(out) if out else None, workers)


def _check_classes(loaded: zoo.Loaded, source: sources.Source) -> None:
    classes = loaded.model.num_classes
    if source.classes is not None and source.classes != classes:
        raise TokredError(
            f"{source.name} has {source.classes} classes, but the weights ({loaded.weights}) tell {classes} apart; "
            "choose weights that were trained for this data with --weights."
        )


def _spaced(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
