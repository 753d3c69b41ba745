"""The evidence behind a row: each image's prediction, and whether it is right.

A run has it in `predictions.npz`; a board keeps a compact copy for each row (`evidence_store`). `claims`
compares a row with its predictions: a row whose scores do not follow from them is disputed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tokred.evaluation.run_folder import Run
from tokred.tables.row import BASELINE, Row, csv_cell

PREDICTIONS = "predictions.npz"
VERIFIED = "verified.json"
_TOLERANCES = dict.fromkeys(
    ("kl", "nll", "nll_rise"), 1e-4
)  # relative; a mean of float32 may be summed in another order
_TOLERANCE = 1e-8  # of the 12 digits of a CSV
_SCORES = ("top1", "top5", "drop", "nll", "nll_rise")
_FIDELITY = ("p_value", "agreement", "kl")  # which the baseline's row leaves out
_RUN = ("configuration", "software", "data", "weights", "class_map", "devkit", "data_dir", "facts", "speeds")
_ABOUT = ("images", "name", "run", "verified", "left_out")


@dataclass(frozen=True)
class Evidence:
    """The predictions behind one row, for all images that count.

    Attributes:
        correct: [n] bool.
        prediction: [n] int32, -1 where the image could not be read.
        groups: [n] int32, images that are not independent share a number.
        images: the hash of the images' indices, labels and groups; rows with the same hash can be paired.
        name: the name of the predictions in their run.
        run: the configuration, data and weights in the run's run.json; empty if it has none.
        verified: the result of the latest `tokred leaderboard verify`; None if there was none.
        left_out: the indices of images that could not be read and do not count.
        nll: [n] float32, negative log-likelihood of the labels; None where the run does not have it.
    """

    correct: np.ndarray
    prediction: np.ndarray
    groups: np.ndarray
    images: str
    name: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    verified: dict[str, Any] | None = None
    left_out: tuple[int, ...] = ()
    nll: np.ndarray | None = None

    @property
    def places(self) -> np.ndarray:
        """[n], the index of each image in the data."""
        return np.setdiff1d(np.arange(len(self.correct) + len(self.left_out)), self.left_out)

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """The groups; None where every image is a group of its own."""
        alone = np.array_equal(self.groups, np.arange(len(self.groups)))
        return None if alone else self.groups

    @property
    def top1(self) -> float:
        """Accuracy in per cent."""
        return float(100 * self.correct.mean())

    @cached_property
    def digest(self) -> str:
        """A short hash of the images and their predictions."""
        predictions = self.prediction.astype("<i4").tobytes()
        nll = b"" if self.nll is None else self.nll.astype("<f4").tobytes()
        return _short_hash(self.images.encode(), np.packbits(self.correct).tobytes(), predictions, nll)

    def contradicts(self, row: Row) -> list[str]:
        """What a row states of top-1 and NLL that does not follow from these predictions."""
        values = {"top1": self.top1}
        if self.nll is not None:
            values["nll"] = float(np.nanmean(self.nll.astype(float)))
        return differences(row, values)

    def pack(self) -> bytes:
        """These values as an npz file, with up to seven bytes for each image, compressed."""
        small = np.int16 if self.prediction.max(initial=0) < 2**15 else np.int32
        about = {"n": len(self.correct), **{name: getattr(self, name) for name in _ABOUT}}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            correct=np.packbits(self.correct),
            prediction=self.prediction.astype(small),
            groups=np.empty(0, np.int32) if self.clusters is None else self.clusters.astype(np.int32),
            nll=np.empty(0, np.float32) if self.nll is None else self.nll.astype(np.float32),
            about=np.array(json.dumps(about)),
        )
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Evidence:
        """Read what `pack` has written.

        Raises:
            ValueError: this is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                about, groups = json.loads(str(file["about"])), file["groups"]
                n, prediction = int(about["n"]), file["prediction"].astype(np.int32)
                correct = np.unpackbits(file["correct"], count=n).astype(bool)
                nll = file["nll"] if "nll" in file and len(file["nll"]) else None  # older boards have none
            groups = groups if len(groups) else np.arange(n, dtype=np.int32)
            if {n} != {len(part) for part in (correct, prediction, groups, nll) if part is not None}:
                raise ValueError("arrays of different lengths")
            return cls(
                correct=correct,
                prediction=prediction,
                groups=groups,
                images=str(about["images"]),
                name=str(about["name"]),
                run=dict(about["run"]),
                verified=about["verified"] if isinstance(about["verified"], dict) else None,
                left_out=tuple(map(int, about.get("left_out", ()))),
                nll=nll,
            )
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError("no outcomes of a row") from error


NO_EVIDENCE = Evidence(np.zeros(0, bool), np.zeros(0, np.int32), np.zeros(0, np.int32), images="")


def evidence_of(run: Run, row: Row) -> Evidence | None:
    """The evidence of a run's row; None where the run does not have it."""
    stored, name = run.predictions, run.name(row)
    if stored is None or name is None or row.status != "ok":
        return None
    counted = stored.counted(row.on_error)
    images, labels = stored.images[counted], stored.labels[counted]
    own = stored.models[name].take(counted)
    prediction = own.prediction
    _, groups = np.unique(stored.groups[counted], return_inverse=True)
    parts = (np.ascontiguousarray(part, "<i8").tobytes() for part in (images, labels, groups))
    evidence = Evidence(
        correct=(prediction == labels) & (prediction >= 0),
        prediction=prediction.astype(np.int32),
        groups=groups.astype(np.int32),
        images=_short_hash(*parts),
        name=name,
        run={part: run.about[part] for part in _RUN if part in run.about},
        left_out=tuple(sorted(stored.unreadable)) if row.on_error == "skip" else (),
        nll=None if np.isnan(own.nll[prediction >= 0]).any() else own.nll,
    )
    verified = read_verified(run.path).get(name)
    current = isinstance(verified, dict) and verified.get("digest") == evidence.digest
    return replace(evidence, verified=verified) if current else evidence


def claims(run: Run, row: Row) -> list[str]:
    """The scores of a row that do not follow from its predictions, such as "top1 91.2 instead of 90.1"."""
    from tokred.evaluation.metrics import score  # SciPy takes half a second

    own, stored = run.of(row), run.predictions
    if own is None or stored is None or row.status != "ok":
        return []
    counted = stored.counted(row.on_error)
    dense, labels = stored.models[BASELINE].take(counted), stored.labels[counted]
    scores = score(own.take(counted), dense, labels, stored.groups[counted], row.seed or 0)
    names = _SCORES if row.method == BASELINE else (*_SCORES, *_FIDELITY)
    return differences(row, {"n_images": len(counted), **{name: getattr(scores, name) for name in names}})


def differences(row: Row, values: Mapping[str, Any], strict: bool = False) -> list[str]:
    """The columns in which a row states something else than the given values.

    Args:
        row: the row.
        values: values by column.
        strict: whether an empty cell states that there is no value; else it states nothing.
    """
    wrong = []
    for name, value in values.items():
        stated, digits = getattr(row, name), _TOLERANCES.get(name, _TOLERANCE)
        if stated == value or (stated in (None, "") and not strict):
            continue
        numbers = isinstance(stated, float) and isinstance(value, float)
        if numbers and math.isclose(stated, value, rel_tol=digits, abs_tol=digits):
            continue
        if csv_cell(stated) != csv_cell(value):
            shown = f"{value:.6g}" if isinstance(value, float) else csv_cell(value)
            wrong.append(f"{name} {csv_cell(stated) or 'none'} instead of {shown or 'none'}")
    return wrong


def read_verified(folder: Path) -> dict[str, Any]:
    """The results of earlier verifications of a run, by the names of its predictions."""
    try:
        return dict(json.loads((folder / VERIFIED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _short_hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
