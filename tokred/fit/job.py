"""`fit`: train the reducers of one method, or all of a reduced model, and leave an adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from tokred import adapters, checkpoint, zoo
from tokred.budget import match
from tokred.data import sources
from tokred.errors import TokredError
from tokred.evaluate import resolve_device, resolve_precision
from tokred.fit.images import Batch, Shuffled, drawn_from, open_images, training_batches, training_transform
from tokred.fit.processes import Processes
from tokred.fit.recipe import FitRecipe
from tokred.fit.student import Student
from tokred.fit.validation import Validator
from tokred.flops import CostTable
from tokred.schedule import Protocol

VALIDATED_BUDGET = 0.3  # the budget at which a fit for any budget is validated
_CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class FitConfig:
    """What to fit, and where.

    Attributes:
        method: a registered name.
        recipe: length, optimiser and loss.
        model: a name of tokred or timm.
        budget: fraction of FLOPs to save; None fits for any budget.
        options: of the method.
        protocol: "native" or "common" stages.
        stages: layers, in place of the protocol's.
        data: as `compare` takes it; None for PhotoDigits.
        weights: a file; by default as `compare` chooses.
        labels: use the labels of the data.
        device: "auto", "cpu", "cuda" ...
        precision: "auto", "fp32" or "bf16".
        chunk: images that run together; by default 16 on a CPU and 256 elsewhere. Gradients add up over a batch.
        workers: processes that load images.
    """

    method: str
    recipe: FitRecipe
    model: str = "deit_s"
    budget: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol = "native"
    stages: tuple[int, ...] | None = None
    data: str | None = None
    weights: str | None = None
    labels: bool = True
    device: str = "auto"
    precision: str = "auto"
    chunk: int | None = None
    workers: int = 1


@dataclass
class Best:
    """The parameters with the least validation loss so far."""

    loss: float = float("inf")
    top1: float = 0.0
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Fit:
    """One run: a student, its optimiser and how far it is. `out` holds the checkpoint, then the adapter and its card.

    Args:
        config: what to fit.
        out: folder.
        loaded: the unreduced model, if it is not the one that `config` names.

    Raises:
        TokredError: anything wrong with the configuration, before any image is read.
    """

    def __init__(self, config: FitConfig, out: Path, loaded: zoo.Loaded | None = None) -> None:
        self.config, self.recipe, self.out = config, config.recipe, out
        self.device = Processes.device(resolve_device(config.device))
        self.dtype = resolve_precision(config.precision, self.device)
        if self.dtype == torch.float16:
            raise TokredError("Gradients underflow in float16; fit with --precision bf16 or fp32.")
        self.loaded = loaded or zoo.load_for(config.model, config.weights, embedded=config.data in (None, sources.EMBEDDED))
        self.images = open_images(config.data, self.recipe.seed, self.loaded.model.num_classes, config.labels)
        if self.images.n is None and self.recipe.images is None:
            raise TokredError("PhotoDigits' training images are endless, so this recipe needs a number of them: --images.")
        self.steps = self.recipe.steps(self.images.n)
        self.chunk = config.chunk or (16 if self.device.type == "cpu" else 256)
        self.student = Student(self.loaded.model, self._plan(), self.recipe, config.budget is None)
        self.student.model.to(self.device)
        self.student.teacher.to(self.device)
        self.parameters = self.student.parameters()
        self.optimizer = self._make_optimizer()
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if self.recipe.ema else {}
        self.mixup = self._make_mixup()
        self.processes = Processes(self.device)
        self.validate = Validator(self.images, self.student, self.processes, self.device, self.autocast, self.chunk, config.workers)
        self.step, self.seconds, self.running_loss = 0, 0.0, float("nan")
        self.best, self.history = Best(), list[dict[str, float]]()

    def _plan(self) -> Any:
        config, costs = self.config, CostTable(self.loaded.model)
        budget = VALIDATED_BUDGET if config.budget is None else config.budget
        options = dict(config.options)
        return match(costs, config.method, budget, protocol=config.protocol, stages=config.stages, options=options).plan

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            share = 1.0 if name.startswith("stages.") else self.recipe.backbone_lr
            decay = self.recipe.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
        settings = [{"params": params, "share": share, "weight_decay": decay} for (share, decay), params in groups.items()]
        return torch.optim.AdamW(settings, lr=self.recipe.lr, betas=self.recipe.betas)

    def _make_mixup(self) -> Mixup | None:
        """timm's mixing of images in pairs, where the recipe wants it. PhotoDigits are shown as they are drawn."""
        recipe = self.recipe
        if self.images.n is None or not (self.images.labelled and (recipe.mixup or recipe.cutmix)):
            return None
        return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=self.loaded.model.num_classes)

    def describe(self) -> str:
        """One line: what is fitted on what, and for how long."""
        plan, images = self.student.plan, self.images
        what = "all weights" if self.recipe.full else "the reducers"
        count = sum(parameter.numel() for parameter in self.parameters.values())
        aim = "any budget" if self.config.budget is None else f"{100 * self.config.budget:g} % fewer FLOPs"
        layers = " ".join(map(str, plan.stages))
        length = f"{self.steps} steps of {self.recipe.batch_size} images from {images.name}"
        how = "" if images.labelled else " Without labels: accuracy below is agreement with the unreduced model."
        return (
            f"Fitting {what} of {plan.reducer.name} at layers {layers} for {aim}: {count:,} parameters, {length}. "
            f"Weights: {self.loaded.weights}.{how}{' ' if images.note else ''}{images.note}"
        )

    def status(self) -> str:
        """Loss and the last validation, for a progress bar."""
        last = self.history[-1] if self.history else None
        validated = f", validation {last['top1']:.1f} % (loss {last['loss']:.3f}), best {self.best.top1:.1f} %" if last else ""
        return f"loss {self.running_loss:.3f}{validated}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result."""
        config = self.config
        return {
            "method": config.method, "recipe": self.recipe.model_dump(mode="json"), "model": config.model,
            "budget": config.budget, "options": self.student.plan.options, "stages": list(self.student.plan.stages),
            "labels": self.images.labelled, "weights_hash": self.loaded.weights_hash, "data_hash": self.images.hash,
            "precision": str(self.dtype),
        }  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            TokredError: it cannot be written.
        """
        if self.processes.rank:
            return
        state = {
            "parameters": {name: p.detach() for name, p in self.parameters.items()}, "average": self.average,
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
            "running_loss": self.running_loss, "best": asdict(self.best), "history": self.history,
        }  # fmt: skip
        checkpoint.save(self.out / "checkpoint.pt", self.identity, state)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one of this configuration; else give the parameters their start.

        Raises:
            TokredError: the folder cannot be written or holds another fit, or the checkpoint cannot be read.
        """
        state = checkpoint.load(self.out / "checkpoint.pt", self.identity, self.device)
        if state is None:
            if self.recipe.calibrate:
                self._calibrate()
            return False
        self.student.load(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.history, self.best = state["average"], state["history"], Best(**state["best"])
        self.step, self.seconds, self.running_loss = state["step"], state["seconds"], state["running_loss"]
        return True

    def _calibrate(self) -> None:
        """On the first training images, which all processes look at alike."""
        count = -(-_CALIBRATION_IMAGES // self.recipe.batch_size)
        batches = training_batches(self._data(), range(count), self.recipe.batch_size, 0, 1, 0)
        self.student.calibrate(torch.cat([batch[0] for batch in batches])[:_CALIBRATION_IMAGES].to(self.device))
        for name, value in self.average.items():
            value.copy_(self.parameters[name].detach())

    def run(self, progress: Callable[[Fit], None] = lambda fit: None, interval: float = 60.0) -> None:
        """Train to the end, calling `progress` after every step and saving every `interval` seconds and when interrupted."""
        last_save = start = time.monotonic()
        before = self.seconds
        try:
            for batch in self._batches():
                self._train_step(batch)
                if self.step in self._evaluations:
                    self._evaluate()
                now = time.monotonic()
                self.seconds = before + now - start
                if now - last_save > interval:
                    self.save()
                    last_save = now
                progress(self)
                if self.stopped:
                    break
        finally:
            self.save()

    @property
    def stopped(self) -> bool:
        """Whether the validation loss has not become better for `patience` validations."""
        return sum(entry["step"] > self.best.step for entry in self.history) >= self.recipe.patience

    @property
    def _evaluations(self) -> set[int]:
        """Steps after which the student is validated; the last one is among them."""
        count = min(self.recipe.evaluations, self.steps)
        return {round(self.steps * (i + 1) / count) for i in range(count)}

    def _data(self) -> Shuffled:
        return Shuffled(self.images, training_transform(self.loaded.model, self.recipe, self.images.n is None), self.recipe.seed)

    def _batches(self) -> Iterator[Batch]:
        steps = range(self.step, self.step if self.stopped else self.steps)
        share = self.processes
        return training_batches(self._data(), steps, self.recipe.batch_size, share.rank, share.world, self.config.workers)

    def autocast(self) -> torch.autocast:
        """The context that models run in."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _train_step(self, batch: Batch) -> None:
        self.student.train(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.recipe.lr_at(self.step, self.steps)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        with drawn_from(self.recipe.seed, self.step, self.processes.rank):  # dropped paths and mixed images
            for images, targets, keys in self._chunks(batch):
                with self.autocast():
                    loss = self.student.loss(images, self.student.teach(images, keys), targets)["loss"]
                loss = loss * (len(images) / self.recipe.batch_size)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        self.processes.sum_gradients(self.parameters.values())
        mean = float(self.processes.sum(total))
        if not np.isfinite(mean):
            raise TokredError(f"The loss is no number at step {self.step}; give a recipe with a lower lr, or --precision fp32.")
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.optimizer.step()
        self._move_average()
        self.running_loss = mean if np.isnan(self.running_loss) else 0.95 * self.running_loss + 0.05 * mean
        self.step += 1

    def _chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Images, targets and keys that run together."""
        images, labels, keys = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        targets: Tensor | None = labels if self.images.labelled else None
        if self.mixup is not None:
            even = len(images) // 2 * 2  # images are mixed in pairs
            images, targets = self.mixup(images[:even], labels[:even])
        for start in range(0, len(images), self.chunk):
            rows = slice(start, start + self.chunk)
            yield images[rows], None if targets is None else targets[rows], keys[rows]

    @torch.no_grad()
    def _move_average(self) -> None:
        for name, value in self.average.items():
            assert self.recipe.ema is not None
            value.lerp_(self.parameters[name].detach(), 1 - self.recipe.ema)

    def _evaluate(self) -> None:
        """Validate the parameters, and their running mean where there is one, and remember the best."""
        entry: dict[str, float] = {"step": self.step}
        for label, tensors in {"": self.parameters, "average_": self.average}.items():
            if not tensors:
                continue
            with self.student.holding(tensors):
                loss, top1 = self.validate()
            entry |= {f"{label}loss": round(loss, 4), f"{label}top1": round(top1, 2)}
            if loss < self.best.loss:
                self.best = Best(loss, top1, self.step, {name: value.detach().clone() for name, value in tensors.items()})
        self.history.append(entry)

    def finish(self, command: str) -> Path:
        """Write the best parameters and their card, after validating what the file holds, and return its path."""
        path = self.out / adapters.file_name(self.config.model, self.student.plan)
        tensors = {name: value.half() for name, value in self.best.tensors.items()}
        with self.student.holding(tensors):
            loss, top1 = self.validate()
        if not self.processes.rank:
            adapters.write(
                path, tensors, {**self._card(), "command": command, "validation_loss": round(loss, 4), "validation_top1": round(top1, 2)}
            )
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
            "validation_budget": VALIDATED_BUDGET if any_budget else config.budget,
            "history": self.history,
            "seconds": round(self.seconds),
            "recipe": self.recipe.model_dump(mode="json"),
            "precision": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            **adapters.versions(),
        }
