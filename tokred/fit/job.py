"""`fit`: train the reducers of one method, or all of a reduced model, and leave an adapter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokred import __version__, adapters, zoo
from tokred.budget import match
from tokred.data import sources
from tokred.errors import TokredError
from tokred.evaluate import resolve_device, resolve_precision
from tokred.fit.images import Batch, FitImages, Shuffled, drawn_from, open_images, training_batches, training_transform
from tokred.fit.processes import Processes
from tokred.fit.recipe import FitRecipe
from tokred.fit.student import Lesson, Student
from tokred.flops import CostTable
from tokred.results import check_writable
from tokred.schedule import Protocol

VALIDATED_BUDGET = 0.3  # the budget at which a fit for any budget is validated
_CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class FitConfig:
    """What to fit. Everything here decides the result but the device and how many images run together.

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
        precision: "auto", "fp32", "bf16" or "fp16".
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

    Raises:
        TokredError: anything wrong with the configuration, before any image is read.
    """

    def __init__(self, config: FitConfig, out: Path, loaded: zoo.Loaded | None = None) -> None:
        self.config, self.recipe, self.out = config, config.recipe, out
        self.device = Processes.device(resolve_device(config.device))
        self.dtype = resolve_precision(config.precision, self.device)
        if self.dtype == torch.float16:
            raise TokredError("Gradients underflow in float16; fit with --precision bf16 or fp32.")
        self.processes = Processes(self.device)
        self.loaded = loaded or zoo.load_for(config.model, config.weights, embedded=config.data in (None, sources.EMBEDDED))
        budget = VALIDATED_BUDGET if config.budget is None else config.budget
        found = match(
            CostTable(self.loaded.model), config.method, budget,
            protocol=config.protocol, stages=config.stages, options=dict(config.options),
        )  # fmt: skip
        self.student = Student(self.loaded.model, found.plan, self.recipe, config.budget is None)
        self.images = open_images(config.data, self.recipe.seed, self.loaded.model.num_classes, config.labels)
        if self.images.n is None and self.recipe.images is None:
            raise TokredError("PhotoDigits' training images are endless, so this recipe needs a number of them: --images.")
        self.steps = self.recipe.steps(self.images.n)
        self.chunk = config.chunk or (16 if self.device.type == "cpu" else 256)
        self.student.model.to(self.device)
        self.student.teacher.to(self.device)
        self.parameters = self.student.parameters()
        self.optimizer = self._make_optimizer()
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()} if self.recipe.ema else {}
        self.mixup = self._make_mixup()
        self.step, self.seconds, self.running_loss = 0, 0.0, float("nan")
        self.best, self.history = Best(), list[dict[str, float]]()
        self._validation: list[Batch] | None = None

    def _make_optimizer(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        plain = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.recipe.optimizer_lr, betas=self.recipe.betas)

    def _make_mixup(self) -> Mixup | None:
        if self.images.n is None or not (self.images.labelled and (self.recipe.mixup or self.recipe.cutmix)):
            return None
        return Mixup(
            self.recipe.mixup, self.recipe.cutmix, label_smoothing=self.recipe.smoothing, num_classes=self.loaded.model.num_classes
        )

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as the checkpoint holds it."""
        config = self.config
        return {
            "method": config.method, "recipe": self.recipe.model_dump(by_alias=True), "model": config.model, "budget": config.budget,
            "options": dict(config.options), "stages": list(self.student.plan.stages), "labels": self.images.labelled,
            "weights_hash": self.loaded.weights_hash, "data_hash": self.images.hash, "precision": str(self.dtype),
        }  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint in one step.

        Raises:
            TokredError: it cannot be written.
        """
        if self.processes.rank:
            return
        state = {
            "identity": self.identity, "parameters": {k: v.detach() for k, v in self.parameters.items()}, "average": self.average,
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds, "running_loss": self.running_loss,
            "best": asdict(self.best), "history": self.history,
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".tmp")
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.checkpoint)
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch
            raise TokredError(f"Cannot write the checkpoint {self.checkpoint} ({error}); the one before is unchanged.") from error

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one of this configuration; else set the student's parameters up.

        Raises:
            TokredError: the folder cannot be written or holds another fit, or the checkpoint cannot be read.
        """
        check_writable(self.out)
        if not self.checkpoint.exists():
            if self.recipe.calibrate:
                self._calibrate()
            return False
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            before = dict(state["identity"])
        except Exception as error:
            raise TokredError(f"The checkpoint {self.checkpoint} is no fit of tokred, or cut off; delete it to start anew.") from error
        changed = [key for key, value in self.identity.items() if before.get(key) != value]
        if changed:
            raise TokredError(f"{self.out} holds a fit with another {', '.join(changed)}; give another --out, or delete it.")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.history, self.best = state["average"], state["history"], Best(**state["best"])
        self.step, self.seconds, self.running_loss = state["step"], state["seconds"], state["running_loss"]
        return True

    def run(self, progress: Callable[[Fit], None] = lambda fit: None, interval: float = 60.0) -> None:
        """Train to the end, calling `progress` after every step and saving every `interval` seconds and when interrupted."""
        last_save = start = time.monotonic()
        before = self.seconds
        try:
            for batch in self._batches():
                self._train_step(batch)
                if self.step in self._evaluations():
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
        return bool(self.history) and sum(entry["step"] > self.best.step for entry in self.history) >= self.recipe.patience

    def _evaluations(self) -> set[int]:
        """Steps after which the student is validated; the last one is among them."""
        count = min(self.recipe.evaluations, self.steps)
        return {round(self.steps * (i + 1) / count) for i in range(count)}

    def _data(self) -> Shuffled:
        embedded = self.images.n is None
        return Shuffled(self.images, training_transform(self.loaded.model, self.recipe, embedded), self.recipe.seed)

    def _batches(self) -> Iterator[Batch]:
        if self.stopped or self.step >= self.steps:
            return iter(())
        steps, share = range(self.step, self.steps), self.processes
        return training_batches(self._data(), steps, self.recipe.batch_size, share.rank, share.world, self.config.workers)

    def _calibrate(self) -> None:
        """On the first training images; a share for all processes alike."""
        count = max(1, _CALIBRATION_IMAGES // self.recipe.batch_size)
        batches = training_batches(self._data(), range(count), self.recipe.batch_size, 0, 1, 0)
        images = torch.cat([batch[0] for batch in batches])[:_CALIBRATION_IMAGES]
        self.student.calibrate(images.to(self.device))
        for name, value in self.average.items():
            value.copy_(self.parameters[name].detach())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _train_step(self, batch: Batch) -> None:
        self.student.train()
        self.student.model.retarget(self.student.draw_counts(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr(self.step, self.steps)
        self.optimizer.zero_grad()
        total = 0.0
        with drawn_from(self.recipe.seed, self.step, self.processes.rank):  # dropped paths and mixed images
            for images, targets, keys in self._chunks(batch):
                with self._autocast():
                    lesson = self._teach(images, keys)
                    loss = self.student.loss(images, lesson, targets)["loss"] * (len(images) / self.recipe.batch_size)
                loss.backward()
                total += float(loss.detach())
        self.processes.sum_gradients(self.parameters.values())
        total = float(self.processes.sum(torch.tensor(total)))
        if not np.isfinite(total):
            raise TokredError(f"The loss is no number at step {self.step}; lower the learning rate in the recipe, or use --precision fp32.")
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.optimizer.step()
        self._average()
        self.running_loss = total if np.isnan(self.running_loss) else 0.95 * self.running_loss + 0.05 * total
        self.step += 1

    def _teach(self, images: Tensor, keys: Tensor) -> Lesson:
        return self.student.teach(images, keys)

    def _chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        images, labels, keys = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        targets: Tensor | None = labels if self.images.labelled else None
        if self.mixup is not None:
            even = len(images) // 2 * 2  # images are mixed in pairs
            images, targets = self.mixup(images[:even], labels[:even])
            keys = keys[:even]
        for rows in torch.arange(len(images), device=self.device).split(self.chunk):
            yield images[rows], None if targets is None else targets[rows], keys[rows]

    @torch.no_grad()
    def _average(self) -> None:
        for name, value in self.average.items():
            assert self.recipe.ema is not None
            value.lerp_(self.parameters[name].detach(), 1 - self.recipe.ema)

    def _evaluate(self) -> None:
        """Validate the parameters, and their running mean where there is one, and remember the better of the best."""
        candidates = {"": {name: p.detach().clone() for name, p in self.parameters.items()}}
        if self.average:
            candidates["average "] = self.average
        entry: dict[str, float] = {"step": self.step}
        for label, tensors in candidates.items():
            with self._holding(tensors):
                loss, top1 = self.validate()
            entry |= {f"{label}loss": loss, f"{label}top1": top1}
            if loss < self.best.loss:
                self.best = Best(loss, top1, self.step, {name: value.clone() for name, value in tensors.items()})
        self.history.append(entry)

    @contextmanager
    def _holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Give the student other parameters for a while."""
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(before[name])

    def validate(self) -> tuple[float, float]:
        """Loss (cross-entropy and KL divergence) and top-1 in per cent; without labels top-1 is agreement with the unreduced model."""
        total = torch.zeros(3, dtype=torch.float64)
        for images, labels, logits in self._validation_batches():
            with self._autocast():
                loss, hits = self.student.validate(images.to(self.device), labels.to(self.device) if self.images.labelled else None, logits)
            total += torch.tensor([loss, hits, len(images)], dtype=torch.float64)
        loss, hits, count = self.processes.sum(total).tolist()
        return loss / count, 100 * hits / count

    def _validation_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and the teacher's logits, which are computed once."""
        source, share = self.images.validation, self.processes
        preparation = sources.prepare(self.loaded.model, source.embedded)
        data = sources.Indexed(source.images, preparation.transform)
        positions = [list(rows) for rows in np.array_split(np.arange(len(source)), max(1, -(-len(source) // self.chunk)))]
        loader = DataLoader(data, batch_sampler=positions[share.rank :: share.world], num_workers=self.config.workers, collate_fn=sources.collate)
        known, logits = self._validation, []
        for index, batch in enumerate(loader):
            if isinstance(batch, TokredError):
                raise batch
            if known is None:
                with torch.no_grad(), self._autocast():
                    state = self.student.teacher.run(batch[0].to(self.device))
                    logits.append(self.student.teacher.head(state).float())
            yield batch[0], batch[1], logits[index] if known is None else known[index]
        if known is None:
            self._validation = logits

    def finish(self, command: str) -> Path:
        """Write the best parameters and their card, after validating what the file holds, and return its path."""
        plan, any_budget = self.student.plan, self.config.budget is None
        path = self.out / adapters.file_name(self.config.model, plan)
        card = {
            **adapters.plan_card(plan, any_budget),
            "training": "full" if self.recipe.full else "reducer",
            "budget": adapters.ANY if any_budget else self.config.budget,
            "model": self.config.model,
            "weights": self.loaded.weights,
            "weights_hash": self.loaded.weights_hash,
            "data": self.images.name,
            "data_hash": self.images.hash,
            "labels": self.images.labelled,
            "images_seen": self.step * self.recipe.batch_size,
            "seconds": round(self.seconds),
            "command": command,
            "recipe": self.recipe.model_dump(by_alias=True),
            "precision": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            "history": [{key: round(value, 4) for key, value in entry.items()} for entry in self.history],
            **_versions(),
        }
        rounded = {name: value.half().float() for name, value in self.best.tensors.items()}
        with self._holding(rounded):
            loss, top1 = self.validate()
            tensors = self.student.model.state_dict() if self.recipe.full else self.parameters
        card |= {"best_step": self.best.step, "validation_images": len(self.images.validation)}
        card |= {"validation_budget": VALIDATED_BUDGET if any_budget else self.config.budget}
        card |= {"validation_loss": round(loss, 4), "validation_top1": round(top1, 2)}
        if not self.processes.rank:
            adapters.write(path, {name: value.detach().half() for name, value in rounded.items()} if not self.recipe.full else tensors, card)
        self.processes.close()
        return path


def _versions() -> dict[str, str]:
    return {"tokred": __version__, "torch": torch.__version__, "timm": timm.__version__, "date": time.strftime("%Y-%m-%d", time.gmtime())}
