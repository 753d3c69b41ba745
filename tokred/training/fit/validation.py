"""Validation of a student, which stops a fit early and chooses among its parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokred.data import loading, preprocessing
from tokred.training.fit.data import check_labels
from tokred.training.fit.learner import Learner
from tokred.utils.devices import autocast


class Validator:
    """Loss and accuracy of a student on the validation images; the dense model runs once on each.

    Args:
        learner: the student with its images, device and precision.
        workers: number of processes that load images.
    """

    def __init__(self, learner: Learner, workers: int) -> None:
        self.student, self.processes = learner.student, learner.processes
        self.device, self.dtype = learner.device, learner.dtype
        self.labelled, source = learner.images.labelled, learner.images.validation
        self._source, self._workers = source, workers
        self._preparation = preprocessing.prepare(self.student.teacher.backbone, source.crop_pct)
        ranges = loading.ranges(len(source), learner.chunk)
        self._ranges = ranges[self.processes.rank :: self.processes.world]
        self._logits: list[Tensor] = []  # those of the dense model

    def __call__(self) -> tuple[float, float]:
        """Loss (cross-entropy and KL divergence) and top-1 in per cent; without labels, agreement.

        Raises:
            TokredError: an image cannot be read.
        """
        total = torch.zeros(3, dtype=torch.float64)
        for images, labels, logits in self._batches():
            with autocast(self.device, self.dtype):
                loss, hits = self.student.validate(images, labels if self.labelled else None, logits)
            total += torch.tensor([loss, hits, len(images)], dtype=torch.float64)
        loss, hits, count = self.processes.sum(total.to(self.device)).tolist()
        return loss / count, 100 * hits / count

    @torch.no_grad()
    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        batches = loading.batches(self._source, self._preparation, self._ranges, self._workers)
        for index, batch in enumerate(batches):
            if self.labelled:
                check_labels(batch.labels, self.student.teacher.backbone.num_classes)
            images, labels = batch.images.to(self.device), batch.labels.to(self.device)
            if index == len(self._logits):
                with autocast(self.device, self.dtype):
                    self._logits.append(self.student.teacher(images).float())
            yield images, labels, self._logits[index]
