"""Per-image predictions of all models of a run, with its unreadable images and failed methods.

An `Evaluation` fills up as batches finish. What it has of some images is a `RunPredictions`, which is written
to the run's folder and sent to the other processes of a distributed run as an npz file; `Evaluation.absorb`
enters such a file again. Nothing here imports torch, so that what is on disk can be read without it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokred.errors import UNLABELLED
from tokred.tables.row import BASELINE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Predictions:
    """Per-image predictions of one model, arrays of length n.

    Attributes:
        prediction: int64, the most likely class; -1 where there is none.
        top5: bool, whether the label is among the five most likely classes.
        kl: float32, KL divergence in nats from the dense model's distribution to this model's; NaN where
            there is none.
        nll: float32, negative log-likelihood in nats of the label; NaN where there is no label or no
            prediction.
        tokens: int32 [n, S], tokens after each stage, where they depend on the image; None elsewhere.
        features: float16 [n, D], pooled features scaled to norm 1, of a model without a classifier, whose
            predictions are all -1; NaN where there are none. None elsewhere, as are the following.
        cosine, error: float32, cosine similarity to the dense model's pooled features, and relative error.
        patch_cosine, patch_error: float32, the same of the features of all patches.
    """

    prediction: np.ndarray
    top5: np.ndarray
    kl: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray | None = field(default=None, kw_only=True)
    features: np.ndarray | None = field(default=None, kw_only=True)
    cosine: np.ndarray | None = field(default=None, kw_only=True)
    error: np.ndarray | None = field(default=None, kw_only=True)
    patch_cosine: np.ndarray | None = field(default=None, kw_only=True)
    patch_error: np.ndarray | None = field(default=None, kw_only=True)

    @classmethod
    def empty(cls, n: int) -> Predictions:
        """No prediction of any of n images."""
        nothing = np.full(n, np.nan, dtype=np.float32)
        return cls(np.full(n, -1), np.zeros(n, dtype=bool), nothing, nothing.copy())

    def put(self, images: np.ndarray, logits: Tensor, labels: Tensor, dense_logits: Tensor) -> None:
        """Enter a batch at the indices `images`, [b]; logits are [b, classes], labels [b]."""
        logits, dense_logits = logits.float(), dense_logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.choose(images, logits)
        self.top5[images] = (best == labels[:, None]).any(1).cpu().numpy()
        log, dense_log = logits.log_softmax(1), dense_logits.log_softmax(1)
        divergence = (dense_log.exp() * (dense_log - log)).sum(1).clamp(min=0)
        of_label = log.gather(1, labels.clamp(0, log.shape[1] - 1)[:, None])[:, 0]
        nll = (-of_label).masked_fill((labels < 0) | (labels >= log.shape[1]), math.nan)
        self.kl[images], self.nll[images] = divergence.cpu().numpy(), nll.cpu().numpy()

    def choose(self, images: np.ndarray, logits: Tensor) -> None:
        """Enter the most likely classes alone, which are there before the dense model's logits."""
        self.prediction[images] = logits.argmax(1).cpu().numpy()

    def clear(self, images: np.ndarray) -> None:
        """Mark images as not predicted; they count as wrong."""
        self.prediction[images], self.top5[images] = -1, False
        self.kl[images] = self.nll[images] = np.nan
        if self.tokens is not None:
            self.tokens[images] = 0
        for part in FEATURES:
            if (array := getattr(self, part)) is not None:
                array[images] = np.nan

    def take(self, images: np.ndarray) -> Predictions:
        """The predictions of some images alone."""
        return Predictions(**{name: array[images] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        arrays = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}

    def count(self, images: np.ndarray, tokens: np.ndarray) -> None:
        """Enter the tokens of some images after each stage, [b, S]."""
        if self.tokens is None:
            self.tokens = np.zeros((len(self.prediction), tokens.shape[1]), dtype=np.int32)
        self.tokens[images] = tokens

    def compare(self, images: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
        """Enter the features of some images and their distances from the dense model's, by name."""
        for part, values in parts.items():
            with _MAKING:  # several threads enter batches
                if getattr(self, part) is None:
                    shape = (len(self.prediction), *values.shape[1:])
                    setattr(self, part, np.full(shape, np.nan, dtype=values.dtype))
            getattr(self, part)[images] = values


_MAKING = Lock()
FEATURES = ("features", "cosine", "error", "patch_cosine", "patch_error")
_OPTIONAL = ("tokens", *FEATURES)
_ARRAYS = ("prediction", "top5", "kl", "nll")


@dataclass(frozen=True)
class RunPredictions:
    """Predictions of all models for some images of a run: the contents of predictions.npz.

    Attributes:
        images: [n] int64, the images' indices in the data.
        labels: [n] int64; -2 where there is none.
        groups: [n] int64, images that are not independent share a number.
        models: predictions by name, those of the dense model under "baseline"; methods that failed are
            missing.
        about: further facts: the run's `key`, `failed` methods, `unreadable` images, `kinds` of files,
            `smallest_batch`, `seconds`.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    models: Mapping[str, Predictions]
    about: Mapping[str, Any]

    @property
    def unreadable(self) -> dict[int, str]:
        """Indices of the images that could not be read, with the reason."""
        return {int(index): str(text) for index, text in self.about.get("unreadable", {}).items()}

    @property
    def failed(self) -> dict[str, str]:
        """Methods that failed, with the reason."""
        return {name: str(reason) for name, (_, reason) in self.about.get("failed", {}).items()}

    @property
    def encodes(self) -> bool:
        """Whether the model has no classifier, so that there are features instead of predictions."""
        return self.models[BASELINE].cosine is not None

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool((self.labels != UNLABELLED).any())

    def counted(self, on_error: str) -> np.ndarray:
        """Places in these arrays of the images that count: all but unreadable ones where they are skipped."""
        left_out = sorted(self.unreadable) if on_error == "skip" else []
        return np.flatnonzero(~np.isin(self.images, left_out))

    def pack(self) -> bytes:
        """These predictions as an npz file."""
        arrays = {"rows": self.images, "labels": self.labels, "about": np.array(json.dumps(self.about))}
        arrays["groups"] = self.groups
        for name, predictions in self.models.items():
            arrays |= {f"{name}/{part}": array for part, array in predictions.arrays().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> RunPredictions:
        """Read what `pack` has written.

        Raises:
            ValueError: this is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = dict(file)
            names = [key.removesuffix("/prediction") for key in arrays if key.endswith("/prediction")]
            for name in names:  # runs of an older tokred have none
                arrays.setdefault(f"{name}/nll", np.full(len(arrays["rows"]), np.nan, dtype=np.float32))
            models: dict[str, Predictions] = {
                name: Predictions(
                    *(arrays[f"{name}/{part}"] for part in _ARRAYS),
                    **{part: arrays[key] for part in _OPTIONAL if (key := f"{name}/{part}") in arrays},
                )
                for name in names
            }
            run = cls(
                images=arrays["rows"],
                labels=arrays["labels"],
                groups=arrays["groups" if "groups" in arrays else "rows"],  # by default one for each image
                models=models,
                about=dict(json.loads(str(arrays["about"]))),
            )
            parts = [array for model in models.values() for array in model.arrays().values()]
            lengths = {len(array) for array in (run.labels, run.groups, *parts)}
            if BASELINE not in models or lengths != {len(run.images)}:
                raise ValueError("arrays of different lengths, or none of the dense model")
            run.counted("skip")  # raises where the indices are damaged
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError("no predictions of tokred") from error
        return run


class Failure(NamedTuple):
    """Why a method has no row; the image is the first one of the batch in which it failed."""

    image: int
    reason: str


@dataclass
class Evaluation:
    """Per-image predictions of all models in one pass over n images.

    Attributes:
        labels: [n] int64; `UNLABELLED` where an image and its label could not be read.
        done: [n] bool, whether the image's batch has been evaluated.
        dense: predictions of the dense model.
        methods: predictions of each method, by its name.
        failed: methods without predictions, with the earliest reason.
        unreadable: indices of images that could not be read, with the reason.
        kinds: indices of images whose file is not plain 8-bit colour, with the kind of file.
        smallest_batch: images in the smallest batch that memory forced; None where it had room for all.
        seconds: duration of the evaluation.
        key: the run's key; packed predictions with another key are refused.
    """

    labels: np.ndarray
    done: np.ndarray
    dense: Predictions
    methods: dict[str, Predictions]
    failed: dict[str, Failure] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    smallest_batch: int | None = None
    seconds: float = 0.0
    key: str = ""
    _lock: Any = field(default_factory=Lock, repr=False)

    @classmethod
    def empty(cls, n: int, methods: Iterable[str]) -> Evaluation:
        """Nothing evaluated yet of n images."""
        return cls(
            labels=np.full(n, UNLABELLED),
            done=np.zeros(n, dtype=bool),
            dense=Predictions.empty(n),
            methods={name: Predictions.empty(n) for name in methods},
        )

    @property
    def models(self) -> dict[str, Predictions]:
        """Predictions by name, those of the dense model under "baseline"."""
        return {BASELINE: self.dense, **self.methods}

    @property
    def readable(self) -> np.ndarray:
        """[n] bool, images that were evaluated and have a prediction."""
        mask = self.done.copy()
        mask[list(self.unreadable)] = False
        return mask

    def fail(self, name: str, failure: Failure) -> None:
        """Record that a method failed; of several failures the one at the earliest image counts."""
        with self._lock:
            self.failed[name] = min(self.failed.get(name, failure), failure)

    def shrink(self, size: int) -> None:
        """Record that memory had room for only `size` images together."""
        with self._lock:
            self.smallest_batch = min(self.smallest_batch or size, size)

    def remark(self, unreadable: Mapping[int, str], kinds: Mapping[int, str]) -> None:
        """Record unreadable images, which then have no predictions, and images of unusual kinds."""
        with self._lock:
            self.unreadable |= unreadable
            self.kinds |= kinds
        images = np.array(sorted(unreadable), dtype=np.int64)
        for predictions in self.models.values():
            predictions.clear(images)

    def take(
        self, images: np.ndarray, groups: np.ndarray | None = None, seconds: float = 0.0
    ) -> RunPredictions:
        """The predictions of some images; methods that failed are left out.

        Args:
            images: [m] indices of the images.
            groups: [n] groups of all images; by default every image is a group of its own.
            seconds: duration of the evaluation of these images.
        """
        chosen = set(images.tolist())
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
        models = {name: model.take(images) for name, model in self.models.items() if name not in failed}
        return RunPredictions(
            images=images,
            labels=self.labels[images],
            groups=images if groups is None else groups[images],
            models=models,
            about=about,
        )

    def absorb(self, data: bytes) -> None:
        """Enter packed predictions, and what else was recorded with them.

        Raises:
            ValueError: these are no packed predictions, or those of another run.
        """
        try:
            run = RunPredictions.unpack(data)
            images, about = run.images, run.about
            missing = self.models.keys() - run.models.keys() - about["failed"].keys()
            if about["key"] != self.key or missing:
                raise ValueError("predictions of another run")
            for name in self.models.keys() & run.models.keys():
                theirs = run.models[name].arrays()
                for part in _ARRAYS:
                    getattr(self.models[name], part)[images] = theirs[part]
                if "tokens" in theirs:
                    self.models[name].count(images, theirs["tokens"])
                self.models[name].compare(images, {part: theirs[part] for part in FEATURES if part in theirs})
            self.labels[images] = run.labels
            for name, (image, reason) in about["failed"].items():
                self.fail(name, Failure(image, reason))
            self.unreadable |= run.unreadable
            self.kinds |= {int(index): text for index, text in about["kinds"].items()}
            if about["smallest_batch"]:
                self.shrink(about["smallest_batch"])
            if not self.done[images].all():
                self.seconds += about["seconds"]
            self.done[images] = True
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError("no packed predictions") from error


def finite(logits: Tensor) -> bool:
    """Whether all logits are finite numbers."""
    return bool(logits.isfinite().all())
