"""What is known of every image of a run: each model's prediction, what failed, and what was odd about the image.

An `Evaluation` fills up as batches finish. `pack` turns any of its rows into bytes, for files that a killed run leaves behind and for the
other processes of a distributed one; `absorb` puts them back.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.tables.row import BASELINE


@dataclass
class Outcomes:
    """What one model did with every image; arrays of length n."""

    prediction: np.ndarray  # int64, most likely class; -1 where there is none
    top5: np.ndarray  # bool, whether the label is among the five most likely
    kl: np.ndarray  # float32, KL divergence from the dense model's distribution to this one's, in nats; NaN where there is none

    @classmethod
    def empty(cls, n: int) -> Outcomes:
        return cls(np.full(n, -1), np.zeros(n, dtype=bool), np.full(n, np.nan, dtype=np.float32))

    def put(self, rows: np.ndarray, logits: Tensor, labels: Tensor, dense_logits: Tensor) -> None:
        """Enter a batch at the given rows."""
        logits, dense_logits = logits.float(), dense_logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.prediction[rows] = logits.argmax(1).cpu().numpy()
        self.top5[rows] = (best == labels[:, None]).any(1).cpu().numpy()
        divergence = F.kl_div(
            logits.log_softmax(1), dense_logits.log_softmax(1), reduction="none", log_target=True
        )
        self.kl[rows] = divergence.sum(1).clamp(min=0).cpu().numpy()

    def forget(self, rows: np.ndarray) -> None:
        """There is no prediction for these rows: nothing to compare, and never right."""
        self.prediction[rows], self.top5[rows], self.kl[rows] = -1, False, np.nan

    def take(self, rows: np.ndarray) -> Outcomes:
        """Only some rows."""
        return Outcomes(self.prediction[rows], self.top5[rows], self.kl[rows])


class Failure(NamedTuple):
    """Why a method has no row; the image is the first one of the batch where it failed."""

    image: int
    reason: str


@dataclass
class Evaluation:
    """Per-image outcomes of one pass.

    Attributes:
        labels: [n] int64; -2 where an image could not be read and its label with it.
        done: [n] bool, whether the image's batch has been evaluated.
        dense: outcomes of the unreduced model.
        methods: of every method.
        failed: methods that have no outcomes, with the earliest reason.
        unreadable: images that could not be read, with the reason.
        kinds: images whose file is not plain 8-bit colour, by what it is.
        smallest_batch: images that ran together where memory did not suffice for more.
        seconds: that all this took.
        key: of the run. What another run has packed is none of its own.
    """

    labels: np.ndarray
    done: np.ndarray
    dense: Outcomes
    methods: dict[str, Outcomes]
    failed: dict[str, Failure] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    smallest_batch: int | None = None
    seconds: float = 0.0
    key: str = ""
    _lock: Any = field(default_factory=Lock, repr=False)

    @classmethod
    def empty(cls, n: int, methods: Iterable[str]) -> Evaluation:
        return cls(
            np.full(n, -2),
            np.zeros(n, dtype=bool),
            Outcomes.empty(n),
            {name: Outcomes.empty(n) for name in methods},
        )

    @property
    def readable(self) -> np.ndarray:
        """[n] bool, images that were evaluated and have a prediction."""
        mask = self.done.copy()
        mask[list(self.unreadable)] = False
        return mask

    def fail(self, name: str, failure: Failure) -> None:
        """A method failed; of several failures the one at the earliest image counts, whichever batch ended first."""
        with self._lock:
            self.failed[name] = min(self.failed.get(name, failure), failure)

    def shrink(self, size: int) -> None:
        """Only `size` images fitted into memory together."""
        with self._lock:
            self.smallest_batch = min(self.smallest_batch or size, size)

    def remark(self, unreadable: Mapping[int, str], kinds: Mapping[int, str]) -> None:
        """Enter what is odd about some images; those that could not be read have no prediction."""
        with self._lock:
            self.unreadable |= unreadable
            self.kinds |= kinds
        rows = np.array(sorted(unreadable), dtype=np.int64)
        for outcomes in self._outcomes().values():
            outcomes.forget(rows)

    def pack(self, rows: np.ndarray, seconds: float = 0.0, **more: np.ndarray) -> bytes:
        """Some rows, `seconds` of work, as an npz file; methods that failed are not in it. `more` arrays are for other readers."""
        chosen = set(rows.tolist())
        with self._lock:  # other threads go on entering
            failed = dict(self.failed)
            about = {
                "key": self.key,
                "failed": failed,
                "unreadable": {index: text for index, text in self.unreadable.items() if index in chosen},
                "kinds": {index: text for index, text in self.kinds.items() if index in chosen},
                "smallest_batch": self.smallest_batch,
                "seconds": seconds,
            }
        arrays = {"rows": rows, "labels": self.labels[rows], "about": np.array(json.dumps(about)), **more}
        for name, outcomes in self._outcomes().items():
            if name not in failed:
                arrays |= {
                    f"{name}/{part.name}": getattr(outcomes, part.name)[rows] for part in fields(Outcomes)
                }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def absorb(self, data: bytes) -> None:
        """Enter packed rows, and what else was known where they were packed.

        Raises:
            ValueError: these are no packed rows, or those of another run.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = dict(file)
            rows, about = arrays["rows"], json.loads(str(arrays["about"]))
            missing = {name for name in self._outcomes() if f"{name}/prediction" not in arrays} - set(
                about["failed"]
            )
            if about["key"] != self.key or missing:
                raise ValueError("rows of another run")
            for name, outcomes in self._outcomes().items():
                for part in fields(Outcomes):
                    if f"{name}/{part.name}" in arrays:
                        getattr(outcomes, part.name)[rows] = arrays[f"{name}/{part.name}"]
            self.labels[rows] = arrays["labels"]
            for name, (image, reason) in about["failed"].items():
                self.fail(name, Failure(image, reason))
            self.unreadable |= {int(index): text for index, text in about["unreadable"].items()}
            self.kinds |= {int(index): text for index, text in about["kinds"].items()}
            if about["smallest_batch"]:
                self.shrink(about["smallest_batch"])
            if not self.done[rows].all():
                self.seconds += about["seconds"]
            self.done[rows] = True
        except Exception as error:  # whatever a damaged file makes of itself
            raise ValueError("no packed rows") from error

    def _outcomes(self) -> dict[str, Outcomes]:
        return {BASELINE: self.dense, **self.methods}


def finite(logits: Tensor) -> bool:
    """Whether all logits are numbers."""
    return bool(torch.isfinite(logits).all())
