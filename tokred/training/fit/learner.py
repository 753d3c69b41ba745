"""Training steps of a fit: the student, its optimiser and the update of its parameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.training.fit.data import FitImages, check_labels, drawn_from
from tokred.training.fit.student import Student
from tokred.utils.devices import autocast
from tokred.utils.distributed import Processes


class Learner:
    """A student, the optimiser of its parameters, and their running mean if the recipe has one.

    Args:
        student: the student, on its device.
        images: the images to learn from.
        processes: the processes that share every batch.
        device: the student's device.
        dtype: dtype of matrix products; autocast is used unless it is float32.
        chunk: number of images in a forward pass; gradients are summed over a batch.
    """

    def __init__(
        self,
        student: Student,
        images: FitImages,
        processes: Processes,
        device: torch.device,
        dtype: torch.dtype,
        chunk: int,
    ) -> None:
        self.student, self.recipe, self.images, self.processes = student, student.recipe, images, processes
        self.device, self.dtype, self.chunk = device, dtype, chunk
        self.parameters = student.parameters()
        self.optimizer = self._make_optimizer()
        averaged = self.parameters if self.recipe.ema else {}
        self.average = {name: parameter.detach().clone() for name, parameter in averaged.items()}
        self.mixup = self._make_mixup()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            share = 1.0 if name.startswith("stages.") else self.recipe.backbone_lr
            decay = self.recipe.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
        settings = [
            {"params": params, "share": share, "weight_decay": decay}
            for (share, decay), params in groups.items()
        ]
        return torch.optim.AdamW(settings, lr=self.recipe.lr, betas=self.recipe.betas)

    def _make_mixup(self) -> Mixup | None:
        """timm's mixing of images in pairs if the recipe has it; never for PhotoDigits."""
        recipe, world = self.recipe, self.processes.world
        if self.images.n is None or not (self.images.labelled and (recipe.mixup or recipe.cutmix)):
            return None
        if recipe.batch_size % (2 * world):
            raise TokredError(
                f"Images are mixed in pairs, so with {world} processes batch_size must be a multiple of "
                f"{2 * world}, got {recipe.batch_size}."
            )
        return Mixup(
            recipe.mixup,
            recipe.cutmix,
            label_smoothing=recipe.smoothing,
            num_classes=self.student.teacher.backbone.num_classes,
        )

    def learn(self, batch: Batch, step: int, steps: int) -> float:
        """Train one step on this process's share of a batch, and return the loss of the whole batch.

        Raises:
            TokredError: the loss is not finite.
        """
        self.student.train(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.recipe.lr_at(step, steps)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        with drawn_from(self.recipe.seed, step, self.processes.rank):  # dropped paths and mixed images
            for images, targets, keys in self._chunks(batch):
                with autocast(self.device, self.dtype):
                    loss = self.student.loss(images, self.student.teach(images, keys), targets)["loss"]
                loss = loss * (len(images) / self.recipe.batch_size)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        self.processes.sum_gradients(self.parameters.values())
        mean = float(self.processes.sum(total))
        if not np.isfinite(mean):
            raise TokredError(
                f"The loss is not finite at step {step}; start again with another --out, and a recipe with a "
                "lower lr or --precision fp32."
            )
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.optimizer.step()
        self._move_average()
        return mean

    def _chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Yield images, targets and keys that run together."""
        if self.images.labelled:
            check_labels(batch.labels, self.student.teacher.backbone.num_classes)
        tensors = (batch.images, batch.labels, batch.indices)
        images, labels, keys = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        targets: Tensor | None = labels if self.images.labelled else None
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        for start in range(0, len(images), self.chunk):
            rows = slice(start, start + self.chunk)
            yield images[rows], None if targets is None else targets[rows], keys[rows]

    @torch.no_grad()
    def _move_average(self) -> None:
        for name, value in self.average.items():
            assert self.recipe.ema is not None
            value.lerp_(self.parameters[name].detach(), 1 - self.recipe.ema)
