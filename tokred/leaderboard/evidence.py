"""The evidence of a row: the prediction for each image, and whether it is right.

A run stores it in `predictions.npz`; a board stores a compact copy for each row (`evidence_store`). `claims`
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
from tokred.utils.files import read_text

PREDICTIONS = "predictions.npz"
VERIFIED = "verified.json"
_TOLERANCES = dict.fromkeys(("kl", "nll", "nll_rise"), 1e-4)  # relative; the order of float32 sums may differ
_TOLERANCE = 1e-8  # a CSV has 12 digits
_SCORES = ("top1", "top5", "drop", "nll", "nll_rise")
_FIDELITY = ("p_value", "agreement", "kl")  # not in the baseline's row
_RUN = ("configuration", "software", "data", "weights", "class_map", "devkit", "data_dir", "facts", "speeds")
_ABOUT = ("images", "name", "run", "verified", "left_out", "disputed")


@dataclass(frozen=True)
class Evidence:
    """The predictions behind one row, for all images that count.

    Attributes:
        correct: [n] bool, whether each prediction is right.
        prediction: [n] int32, the predicted class; -1 if the image could not be read.
        groups: [n] int32, images that are not independent share a number.
        images: hash of the images' indices, labels and groups; rows with the same hash can be paired.
        name: name of the predictions in their run.
        run: the configuration, data and weights of the run, from run.json; empty if unknown.
        verified: result of the latest `tokred leaderboard verify`; None if there was none.
        left_out: indices of images that could not be read and do not count.
        nll: [n] float32, negative log-likelihood of the labels; None if the run does not have it.
        cosine: [n] float32, similarity of the features to the dense model's; None with a classifier.
        disputed: scores of the row that contradict the predictions of its run; see `claims`.
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
    cosine: np.ndarray | None = None
    disputed: tuple[str, ...] = ()

    @property
    def places(self) -> np.ndarray:
        """[n] indices of the images in the data."""
        return np.setdiff1d(np.arange(len(self.correct) + len(self.left_out)), self.left_out)

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """The groups; None if every image is a group of its own."""
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
        losses = (part.astype("<f4").tobytes() for part in (self.nll, self.cosine) if part is not None)
        return _short_hash(self.images.encode(), np.packbits(self.correct).tobytes(), predictions, *losses)

    def contradicts(self, row: Row) -> list[str]:
        """How the row contradicts its predictions, here or in its run; empty if it does not."""
        values = {"top1": self.top1}
        for column, part in (("nll", self.nll), ("feature_cosine", self.cosine)):
            if part is not None:
                values[column] = float(np.nanmean(part.astype(float)))
        return list(dict.fromkeys([*differences(row, values), *self.disputed]))

    def pack(self) -> bytes:
        """The evidence as an npz file, with up to seven bytes for each image before compression."""
        small = np.int16 if self.prediction.max(initial=0) < 2**15 else np.int32
        about = {"n": len(self.correct), **{name: getattr(self, name) for name in _ABOUT}}
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            correct=np.packbits(self.correct),
            prediction=self.prediction.astype(small),
            groups=np.empty(0, np.int32) if self.clusters is None else self.clusters.astype(np.int32),
            nll=_stored(self.nll),
            cosine=_stored(self.cosine),
            about=np.array(json.dumps(about)),
        )
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Evidence:
        """Read what `pack` has written.

        Raises:
            ValueError: the data is damaged or has another form.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                about, groups = json.loads(str(file["about"])), file["groups"]
                n, prediction = int(about["n"]), file["prediction"].astype(np.int32)
                correct = np.unpackbits(file["correct"], count=n).astype(bool)
                nll, cosine = (  # older boards have none
                    file[name] if name in file and len(file[name]) else None for name in ("nll", "cosine")
                )
            groups = groups if len(groups) else np.arange(n, dtype=np.int32)
            if {n} != {len(part) for part in (correct, prediction, groups, nll, cosine) if part is not None}:
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
                cosine=cosine,
                disputed=tuple(map(str, about.get("disputed", ()))),
            )
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError("not the evidence of a row") from error


NO_EVIDENCE = Evidence(np.zeros(0, bool), np.zeros(0, np.int32), np.zeros(0, np.int32), images="")


def evidence_of(run: Run, row: Row) -> Evidence | None:
    """The evidence of a run's row; None if the run does not have it."""
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
        nll=None if stored.encodes or np.isnan(own.nll[prediction >= 0]).any() else own.nll,
        cosine=own.cosine,
    )
    verified = read_verified(run.path).get(name)
    current = isinstance(verified, dict) and verified.get("digest") == evidence.digest
    return replace(evidence, verified=verified) if current else evidence


def claims(run: Run, row: Row) -> list[str]:
    """The scores of a row that do not follow from its predictions, such as "top1 91.2 instead of 90.1"."""
    from tokred.evaluation.feature_scores import feature_columns  # SciPy takes half a second
    from tokred.evaluation.metrics import score

    own, stored, name = run.of(row), run.predictions, run.name(row)
    if own is None or stored is None or name is None or row.status != "ok":
        return []
    counted = stored.counted(row.on_error)
    if stored.encodes:
        labels = stored.labels[counted] if stored.labelled else None
        models = {BASELINE: stored.models[BASELINE].take(counted), name: own.take(counted)}
        return differences(row, feature_columns(models, labels, stored.groups[counted], row.seed or 0)[name])
    dense, labels = stored.models[BASELINE].take(counted), stored.labels[counted]
    scores = score(own.take(counted), dense, labels, stored.groups[counted], row.seed or 0)
    names = _SCORES if row.method == BASELINE else (*_SCORES, *_FIDELITY)
    return differences(row, {"n_images": len(counted), **{name: getattr(scores, name) for name in names}})


def differences(row: Row, values: Mapping[str, Any], strict: bool = False) -> list[str]:
    """The columns in which a row differs from the given values, such as "top1 91.2 instead of 90.1".

    Args:
        row: the row.
        values: values by column.
        strict: whether an empty cell differs from a value; otherwise empty cells are ignored.
    """
    wrong = []
    for name, value in values.items():
        stated, digits = getattr(row, name), _TOLERANCES.get(name, _TOLERANCE)
        if stated == value or (stated in (None, "") and not strict):
            continue
        floats = isinstance(stated, float) and isinstance(value, float)
        if floats and math.isclose(stated, value, rel_tol=digits, abs_tol=digits):
            continue
        if csv_cell(stated) != csv_cell(value):
            expected = f"{value:.6g}" if isinstance(value, float) else csv_cell(value)
            wrong.append(f"{name} {csv_cell(stated) or 'none'} instead of {expected or 'none'}")
    return wrong


def read_verified(folder: Path) -> dict[str, Any]:
    """Results of earlier verifications of a run, by the names of its predictions."""
    try:
        return dict(json.loads(read_text(folder / VERIFIED)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _stored(values: np.ndarray | None) -> np.ndarray:
    """Values of images as evidence stores them; empty where there are none."""
    return np.empty(0, np.float32) if values is None else values.astype(np.float32)


def _short_hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
