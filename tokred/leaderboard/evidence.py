"""What a row rests on: each image's prediction, and whether it is right.

A run has it in `predictions.npz`; a board keeps a compact copy of each row's (`store`). `claims` compares a row with it: a row whose
numbers do not follow from its predictions was not made by them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tokred.tables.row import BASELINE, outcome_name

Line = dict[str, str]
PREDICTIONS = "predictions.npz"
VERIFIED = "verified.json"
_CLOSE = {"kl": 1e-4}  # of the value; a mean of float32 may be summed in another order
_OTHERWISE = 1e-8
_ABOUT = ("images", "name", "run", "verified")


@dataclass(frozen=True)
class Evidence:
    """One row's outcomes for every image that counts.

    Attributes:
        correct: [n] bool.
        prediction: [n] int32, -1 where the image could not be read.
        groups: [n] int32, images that are not independent share a number.
        images: hash of the images' indices, labels and groups; two rows are paired where it is the same.
        name: of the row's outcomes in its run.
        run: what run.json says of it: configuration, data, weights; empty where it has none.
        verified: what the latest `tokred leaderboard verify` found; None where there was none.
        left_out: indices of images that could not be read and do not count.
    """

    correct: np.ndarray
    prediction: np.ndarray
    groups: np.ndarray
    images: str
    name: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    verified: dict[str, Any] | None = None
    left_out: tuple[int, ...] = ()

    @property
    def places(self) -> np.ndarray:
        """[n], the index of each image in the data."""
        every = np.arange(len(self.correct) + len(self.left_out))
        return every[~np.isin(every, self.left_out)]

    @property
    def top1(self) -> float:
        return float(100 * self.correct.mean())

    @cached_property
    def digest(self) -> str:
        """A short hash of the images and of what was found for them."""
        parts = (
            self.images.encode(),
            np.packbits(self.correct).tobytes(),
            self.prediction.astype("<i4").tobytes(),
        )
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def supports(self, line: Line) -> bool:
        """Whether the row's top-1 follows from these outcomes. Without labels it has none."""
        stated = number(line["top1"])
        return not line["top1"] or _close(stated, self.top1, _OTHERWISE)

    def pack(self) -> bytes:
        """As an npz file: a bit and, compressed, a byte or two for each image."""
        alone = np.array_equal(self.groups, np.arange(len(self.groups)))
        small = np.int16 if self.prediction.max(initial=0) < 2**15 else np.int32
        about = {
            "n": len(self.correct),
            "left_out": self.left_out,
            **{key: getattr(self, key) for key in _ABOUT},
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            correct=np.packbits(self.correct),
            prediction=self.prediction.astype(small),
            groups=np.empty(0, np.int32) if alone else self.groups.astype(np.int32),
            about=np.array(json.dumps(about)),
        )
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Evidence:
        """What `pack` made.

        Raises:
            ValueError: it is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                about, groups = json.loads(str(file["about"])), file["groups"]
                n = int(about["n"])
                correct, prediction = (
                    np.unpackbits(file["correct"], count=n).astype(bool),
                    file["prediction"].astype(np.int32),
                )
            groups = groups if len(groups) else np.arange(n, dtype=np.int32)
            if not n == len(correct) == len(prediction) == len(groups):
                raise ValueError("arrays of different lengths")
            verified = about["verified"] if isinstance(about["verified"], dict) else None
            left_out = tuple(map(int, about.get("left_out", ())))
            return cls(
                correct,
                prediction,
                groups,
                str(about["images"]),
                str(about["name"]),
                dict(about["run"]),
                verified,
                left_out,
            )
        except Exception as error:  # whatever a damaged file makes of itself
            raise ValueError("no outcomes of a row") from error


class RunOutcomes:
    """The per-image outcomes of a finished run, as its folder has them.

    Raises:
        ValueError: `predictions.npz` is there and cannot be read.
        FileNotFoundError: there is none.
    """

    arrays: dict[str, np.ndarray]
    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = (folder / PREDICTIONS).read_bytes()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                self.arrays = dict(file)
            self.unreadable = np.array(
                sorted(map(int, json.loads(str(self.arrays["about"]))["unreadable"])), dtype=np.int64
            )
            self.rows, self.labels = self.arrays["rows"], self.arrays["labels"]
            self.groups = self.arrays.get("groups", self.rows)
            dense = len(self.arrays[f"{BASELINE}/prediction"])
            if not len(self.rows) == len(self.labels) == len(self.groups) == dense:
                raise ValueError("arrays of different lengths")
        except Exception as error:  # whatever a damaged file makes of itself
            raise ValueError(f"{folder / PREDICTIONS} is damaged or no file of tokred") from error
        self.run = _json(folder / "run.json")
        self.verified = _json(folder / VERIFIED)

    def name(self, line: Line) -> str | None:
        """The name of a row's outcomes; None where they are not here."""
        return outcome_name(self.arrays, line["method"], number(line["budget"]), line["knob"], line["stages"])

    def of(self, line: Line) -> Evidence | None:
        """The outcomes that a row rests on; None where they are not here."""
        name = self.name(line)
        if name is None or line["status"] != "ok":
            return None
        chosen = self._chosen(line)
        prediction, labels = self.arrays[f"{name}/prediction"][chosen], self.labels[chosen]
        _, groups = np.unique(self.groups[chosen], return_inverse=True)
        images = hashlib.sha256(
            b"".join(
                np.ascontiguousarray(part, "<i8").tobytes() for part in (self.rows[chosen], labels, groups)
            )
        )
        about: dict[str, Any] = {
            key: self.run[key] for key in ("configuration", "software", "data", "weights") if key in self.run
        }
        correct = (prediction == labels) & (prediction >= 0)
        left_out = tuple(map(int, self._left_out(line)))
        made = Evidence(
            correct,
            prediction.astype(np.int32),
            groups.astype(np.int32),
            images.hexdigest()[:16],
            name,
            about,
            left_out=left_out,
        )
        found = self.verified.get(name)
        return (
            replace(made, verified=found)
            if isinstance(found, dict) and found.get("digest") == made.digest
            else made
        )

    def claims(self, line: Line) -> list[str]:
        """What a row says that does not follow from its outcomes, such as "top1 91.2 instead of 90.1"."""
        name = self.name(line)
        if name is None or line["status"] != "ok":
            return []
        wrong = []
        for column, value in self._scores(name, line).items():
            stated = number(line[column])
            if stated is not None and not _close(stated, value, _CLOSE.get(column, _OTHERWISE)):
                wrong.append(f"{column} {line[column] or 'none'} instead of {value:.6g}")
        return wrong

    def _scores(self, name: str, line: Line) -> dict[str, float]:
        """What `metrics.score` finds, but for the intervals, which would need their bootstrap."""
        from tokred.evaluation.metrics import mcnemar  # SciPy takes half a second

        chosen = self._chosen(line)
        dense, prediction = (
            self.arrays[f"{BASELINE}/prediction"][chosen],
            self.arrays[f"{name}/prediction"][chosen],
        )
        labels, known = self.labels[chosen], dense >= 0
        right, dense_right = (prediction == labels) & known, (dense == labels) & known
        lost = dense_right.astype(int) - right.astype(int)
        _, group = np.unique(self.groups[chosen], return_inverse=True)
        found: dict[str, Any] = {
            "n_images": len(chosen),
            "top1": 100 * right.mean(),
            "drop": 100 * lost.mean(),
        }
        found["top5"] = 100 * self.arrays[f"{name}/top5"][chosen].mean()
        if name != BASELINE:
            found["p_value"] = mcnemar(np.bincount(group, weights=lost))
            found["agreement"] = (prediction == dense)[known].mean()
            found["kl"] = self.arrays[f"{name}/kl"][chosen][known].mean()
        return {column: float(value) for column, value in found.items()}

    def _chosen(self, line: Line) -> np.ndarray:
        """Places of the images that a row counts."""
        return np.flatnonzero(~np.isin(self.rows, self._left_out(line)))

    def _left_out(self, line: Line) -> np.ndarray:
        return self.unreadable if line["on_error"] == "skip" else self.unreadable[:0]


def number(text: str) -> float | None:
    """A cell as a number; None where it is none, or not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _close(stated: float | None, value: float, tolerance: float) -> bool:
    return stated is not None and math.isclose(stated, value, rel_tol=tolerance, abs_tol=tolerance)


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing or something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
