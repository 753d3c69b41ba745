"""Fitting the reducers of a method, or all weights of a reduced model, and writing an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import Match, match
from tokred.core.options import changed_options, options_text
from tokred.data import loading, sources
from tokred.errors import TokredError, Unreachable
from tokred.models import adapters, zoo
from tokred.training.fit.config import FitConfig
from tokred.training.fit.data import Shuffled, open_images, training_batches, training_transform
from tokred.training.fit.learner import Learner
from tokred.training.fit.student import Student
from tokred.training.fit.validation import Validator
from tokred.training.loop import TrainingRun
from tokred.utils.devices import default_batch_size, resolve_precision
from tokred.utils.distributed import Processes
from tokred.utils.provenance import versions
from tokred.utils.text import spaced

# A fit for any budget is validated at the first of these that the method can reach.
VALIDATED_BUDGETS = (0.3, 0.2, 0.1, 0.05)
_CALIBRATION_IMAGES = 64


@dataclass
class Best:
    """The parameters with the least validation loss so far."""

    loss: float = float("inf")
    top1: float = 0.0
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Fit(TrainingRun):
    """A run that fits the reducers of a method.

    Args:
        config: the configuration.
        out: folder of the checkpoint, the adapter and its card.
        loaded: the dense model; by default the one in `config`.

    Raises:
        TokredError: the configuration is invalid. This is known before any image is read.
    """

    def __init__(self, config: FitConfig, out: Path, loaded: zoo.Loaded | None = None) -> None:
        super().__init__(out)
        self.config, self.recipe = config, config.recipe
        self.device = Processes.device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        if self.dtype == torch.float16:
            raise TokredError("Gradients underflow in float16; fit with --precision bf16 or fp32.")
        weights: zoo.DefaultWeights = "shipped" if sources.is_photodigits(config.data) else "pretrained"
        self.loaded = loaded or zoo.load_for(config.model, config.weights, weights, config.img_size)
        self.match = self._match()
        self.student = Student(self.loaded.model, self.match.plan, self.recipe, config.budget is None)
        self.images = open_images(config.data, self.recipe.seed, self.loaded.model.num_classes, config.labels)
        self._check()
        self.steps = self.recipe.steps(self.images.n)
        self.student.model.to(self.device)
        self.student.teacher.to(self.device)
        self.processes = Processes(self.device)
        if self.recipe.batch_size < self.processes.world:
            raise TokredError(
                f"A batch of {self.recipe.batch_size} images cannot be shared by "
                f"{self.processes.world} processes."
            )
        chunk = config.chunk or default_batch_size(self.device)
        self.learner = Learner(self.student, self.images, self.processes, self.device, self.dtype, chunk)
        self.validate = Validator(self.learner, config.workers)
        self.running_loss = float("nan")
        self.best, self.history = Best(), list[dict[str, float]]()

    def _match(self) -> Match:
        """The plan for the budget, or the one at which a fit for any budget is validated."""
        config, costs = self.config, CostTable(self.loaded.model)
        own = {} if self.recipe.full else registry.get(config.method).fit_options
        budgets = VALIDATED_BUDGETS if config.budget is None else (config.budget,)
        for budget in budgets:
            try:
                return match(
                    costs,
                    config.method,
                    budget,
                    protocol=config.protocol,
                    stages=config.stages,
                    options={**own, **config.options},
                )
            except Unreachable:
                if budget == budgets[-1]:
                    raise
        raise AssertionError

    def _check(self) -> None:
        """Check that the recipe and the images are compatible."""
        if self.images.n is None and self.recipe.images is None:
            raise TokredError(
                "PhotoDigits' training images are endless, so this recipe needs their number; give --images."
            )
        if not (self.images.labelled or self.recipe.logits_weight or self.recipe.tokens_weight):
            raise TokredError(
                "Without labels this recipe has no loss; choose one with logits_weight or tokens_weight."
            )

    def describe(self) -> str:
        """A line about the fit: its parameters, length, images and weights."""
        plan, images = self.student.plan, self.images
        what = "all weights" if self.recipe.full else "the reducers"
        count = sum(parameter.numel() for parameter in self.learner.parameters.values())
        aim = "any budget" if self.config.budget is None else f"{100 * self.config.budget:g} % fewer FLOPs"
        options = options_text(changed_options(plan.reducer, plan.options))
        method = f"{plan.reducer.name} ({options})" if options else plan.reducer.name
        length = f"{self.steps} steps of {self.recipe.batch_size} images from {images.name}"
        how = "" if images.labelled else " Without labels, accuracy means agreement with the dense model."
        return (
            f"Fitting {what} of {method} at layers {spaced(plan.stages)} for {aim}: {count:,} parameters, "
            f"{length}. Weights: {self.loaded.weights}.{how}{' ' if images.note else ''}{images.note}"
        )

    def status(self) -> str:
        """Loss and the last validation, for a progress bar."""
        status = f"loss {self.running_loss:.3f}"
        if self.history:
            last = self.history[-1]
            validation = f"validation {last['top1']:.1f} % (loss {last['loss']:.3f})"
            status += f", {validation}, best {self.best.top1:.1f} %"
        return status

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result."""
        config = self.config
        return {
            "method": config.method,
            "recipe": self.recipe.model_dump(mode="json"),
            "model": config.model,
            "budget": config.budget,
            "options": self.student.plan.options,
            "stages": list(self.student.plan.stages),
            "labels": self.images.labelled,
            "weights_hash": self.loaded.weights_hash,
            "data_hash": self.images.hash,
            "validation_hash": self.images.validation.hash,
            "tokens": list(self.student.plan.tokens),
            "precision": str(self.dtype),
            "chunk": self.learner.chunk,
            "processes": self.processes.world,
        }

    def state(self) -> dict[str, Any]:
        return {
            "parameters": {name: p.detach() for name, p in self.learner.parameters.items()},
            "average": self.learner.average,
            "optimizer": self.learner.optimizer.state_dict(),
            "running_loss": self.running_loss,
            "best": asdict(self.best),
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.student.load(state["parameters"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.learner.average, self.running_loss = state["average"], state["running_loss"]
        self.history, self.best = state["history"], Best(**state["best"])

    def save(self) -> None:
        if not self.processes.rank:
            super().save()

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one, else initialise the parameters."""
        resumed = super().resume()
        if not resumed and self.recipe.calibrate:
            self._calibrate()
        self.processes.agree(self.step, self.learner.parameters.values())
        return resumed

    def _calibrate(self) -> None:
        """Initialise the reducers by the first training images, which are the same in all processes."""
        count = -(-_CALIBRATION_IMAGES // self.recipe.batch_size)
        batches = training_batches(self._data(), range(count), self.recipe.batch_size, 0, 1, 0)
        self.student.calibrate(
            torch.cat([batch.images for batch in batches])[:_CALIBRATION_IMAGES].to(self.device)
        )
        for name, value in self.learner.average.items():
            value.copy_(self.learner.parameters[name].detach())

    def learn(self, batch: loading.Batch) -> None:
        loss = self.learner.learn(batch, self.step, self.steps)
        self.running_loss = loss if np.isnan(self.running_loss) else 0.95 * self.running_loss + 0.05 * loss

    @property
    def stopped(self) -> bool:
        """Whether the loss was not lower in the last `patience` validations."""
        return sum(entry["step"] > self.best.step for entry in self.history) >= self.recipe.patience

    @property
    def stop_reason(self) -> str:
        """A sentence if the fit ended before its last step; else empty."""
        if not self.stopped or self.step == self.steps:
            return ""
        return (
            f"Stopped after {self.step} of {self.steps} steps: the loss was not lower than at step "
            f"{self.best.step} in {self.recipe.patience} validations since. To continue, use a recipe with "
            "more patience."
        )

    @property
    def _evaluations(self) -> set[int]:
        """Steps after which the student is validated, including the last one."""
        count = min(self.recipe.evaluations, self.steps)
        return {round(self.steps * (i + 1) / count) for i in range(count)}

    def _data(self) -> Shuffled:
        transform = training_transform(self.loaded.model, self.recipe, as_drawn=self.images.n is None)
        return Shuffled(self.images, transform, self.recipe.seed)

    def batches(self) -> Iterator[loading.Batch]:
        steps = range(self.step, self.step if self.stopped else self.steps)
        share = self.processes
        return training_batches(
            self._data(), steps, self.recipe.batch_size, share.rank, share.world, self.config.workers
        )

    def between_steps(self) -> None:
        """If validation is due, validate the parameters and their running mean, and keep the best."""
        if self.step not in self._evaluations or any(entry["step"] == self.step for entry in self.history):
            return
        entry: dict[str, float] = {"step": self.step}
        for label, tensors in {"": self.learner.parameters, "average_": self.learner.average}.items():
            if not tensors:
                continue
            with self.student.holding(tensors) if label else nullcontext():
                loss, top1 = self.validate()
            entry |= {f"{label}loss": round(loss, 4), f"{label}top1": round(top1, 2)}
            if loss < self.best.loss:
                copies = {name: value.detach().clone() for name, value in tensors.items()}
                self.best = Best(loss, top1, self.step, copies)
        self.history.append(entry)

    def finish(self, command: str) -> Path:
        """Validate the best parameters as stored, write the adapter and its card, and return its path."""
        if not self.best.tensors:
            raise TokredError(
                "The validation loss of this fit was never finite, so there is no adapter to write; fit "
                "again with a lower lr."
            )
        path = self.out / adapters.file_name(self.config.model, self.student.plan)
        with self.student.holding(adapters.unpack(adapters.pack(self.best.tensors))):
            loss, top1 = self.validate()
        if not self.processes.rank:
            validation = {"validation_loss": round(loss, 4), "validation_top1": round(top1, 2)}
            adapters.write(path, self.best.tensors, {**self._card(), "command": command, **validation})
        self.processes.close()
        return path

    def _card(self) -> dict[str, Any]:
        config, any_budget = self.config, self.config.budget is None
        return {
            **adapters.plan_card(self.student.plan, any_budget),
            "training": "full" if self.recipe.full else "reducer",
            "budget": adapters.ANY if any_budget else config.budget,
            "model": config.model,
            "weights": self.loaded.weights,
            "weights_hash": self.loaded.weights_hash,
            "data": self.images.name,
            "data_hash": self.images.hash,
            "labels": self.images.labelled,
            "images_seen": self.step * self.recipe.batch_size,
            "best_step": self.best.step,
            "validation_images": len(self.images.validation),
            "validation_hash": self.images.validation.hash,
            "validation_budget": self.match.budget,
            "history": self.history,
            "seconds": round(self.seconds),
            "recipe": self.recipe.model_dump(mode="json"),
            "precision": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            **versions(),
        }
