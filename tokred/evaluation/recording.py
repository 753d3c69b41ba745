"""Saving an evaluation in the folder of its run while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from tokred.evaluation.folder import Folder
from tokred.evaluation.predictions import Evaluation

_INTERVAL = 10.0  # seconds of work that a kill can lose


class Record:
    """Saves the finished batches of an evaluation in the run's folder, every few seconds.

    Args:
        evaluation: the evaluation, including the predictions of earlier runs.
        folder: the run's folder; None to save nothing.
        processes: number of processes that share the run; the time of each batch is divided by it.
    """

    def __init__(self, evaluation: Evaluation, folder: Folder | None, processes: int = 1) -> None:
        self.evaluation, self.folder, self.processes = evaluation, folder, processes
        self._saved = evaluation.done.copy()
        self._pending: list[np.ndarray] = []
        self._last = time.monotonic()

    def missing(self, batches: Sequence[range]) -> list[range]:
        """The batches that are not evaluated yet."""
        done = self.evaluation.done
        return [batch for batch in batches if not done[batch.start : batch.stop].all()]

    def finished(self, images: np.ndarray) -> None:
        """Note the indices of a finished batch, and save pending batches if the last save is long ago."""
        self._pending.append(images)
        if time.monotonic() - self._last >= _INTERVAL:
            self.flush()

    def flush_all(self) -> None:
        """Save everything that is evaluated, including batches that have not been noted yet."""
        self._pending = [np.flatnonzero(self.evaluation.done & ~self._saved)]
        self.flush()

    def flush(self) -> None:
        """Save the batches noted since the last save; see `Folder.write`."""
        now = time.monotonic()
        if sum(map(len, self._pending)):
            images, seconds = np.concatenate(self._pending), (now - self._last) / self.processes
            self.evaluation.seconds += seconds
            if self.folder:
                self.folder.save_predictions(self.evaluation, images, seconds)
            self._saved[images] = True
        self._pending.clear()
        self._last = now
