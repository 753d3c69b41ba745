"""The training loop of `train` and `fit`, with checkpoints from which an interrupted run resumes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokred.errors import TokredError
from tokred.training import checkpoint


class TrainingRun(ABC):
    """A training run that saves checkpoints and continues from the last one.

    Args:
        out: folder of the checkpoint and the results.

    Attributes:
        step: number of steps done.
        seconds: time spent on them, over all sessions.
    """

    device = torch.device("cpu")

    def __init__(self, out: Path) -> None:
        self.out, self.step, self.seconds = out, 0, 0.0

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result; a checkpoint with another identity is refused."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint besides step and seconds."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint."""

    @abstractmethod
    def batches(self) -> Iterable[Any]:
        """The batches from the current step to the last."""

    @abstractmethod
    def learn(self, batch: Any) -> None:
        """Train one step on a batch."""

    def between_steps(self) -> None:  # noqa: B027, optional
        """Run before the first step and after each one."""

    @property
    def stopped(self) -> bool:
        """Whether the run ends before its last step."""
        return False

    def save(self) -> None:
        """Write the checkpoint; see `checkpoint.save`."""
        state = {**self.state(), "step": self.step, "seconds": self.seconds}
        checkpoint.save(self.out / "checkpoint.pt", self.identity, state)

    def resume(self) -> bool:
        """Continue from the checkpoint, and return whether there is one; see `checkpoint.load`."""
        state = checkpoint.load(self.out / "checkpoint.pt", self.identity, self.device)
        if state is None:
            return False
        self.restore(state)
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def run(self, progress: Callable[[Any], object] = lambda run: None, interval: float = 60.0) -> None:
        """Train to the end.

        Args:
            progress: function called after every step.
            interval: seconds between checkpoints; another is saved at the end, also if interrupted.
        """
        start = last_save = time.monotonic()
        before, whole = self.seconds, True
        try:
            self.between_steps()
            for batch in self.batches():
                whole = False  # an interrupted step is not saved: its parameters may be half updated
                self.learn(batch)
                self.step += 1
                whole = True
                self.between_steps()
                now = time.monotonic()
                self.seconds = before + now - start
                if now - last_save > interval:
                    self.save()
                    last_save = now
                progress(self)
                if self.stopped:
                    break
        except TokredError:  # raised before a step changes any parameter
            whole = True
            raise
        finally:
            if whole:
                self.save()
