"""`Source`: images in a fixed order, and what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset

from tokred.data.images import Relabelled
from tokred.errors import UNLABELLED, TokredError
from tokred.models.zoo import DefaultWeights

Origin = Literal["", "validation", "training"]  # by the names of ImageNet's files


def hash_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, as hexadecimal digits."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Source:
    """Images in a fixed order, their labels, and what a table must say about them.

    Attributes:
        images: index to (PIL image in RGB, label).
        name: name of the data set, as tables show it.
        split: name of the split.
        hash: SHA-256 that changes when the images or their labels do; over pixels for PhotoDigits, over names
            and sizes for files.
        groups: [n]; images that are not independent share a number.
        classes: number of classes; None where it is unknown.
        limited: whether this is only the beginning of the split.
        title: name of the data set in sentences; by default `name`.
        about: what the data set is, in front of the title in sentences.
        weights: which weights belong to these images where the user names none.
        crop_pct: visible fraction of each image's side; None leaves it to the model.
        note: sentences that a reader of the results needs.
        class_names: names of the classes, in the order of the labels, where they are known.
        fingerprint: hash that changes when a file is written to, even if its size stays; empty without files.
        labels: [n] int64, where they are known before any image is read.
        labelled: whether the images have labels; else all are `UNLABELLED`.
        sorted: whether labels count the sorted names of folders, an order that the weights need not share.
        origin: which of ImageNet's files these are, by their names.
        images_hash: SHA-256 as `hash`, of the images without their labels.
    """

    images: Dataset[tuple[Image.Image, int]]
    name: str
    split: str
    hash: str
    groups: np.ndarray
    classes: int | None
    limited: bool = False
    title: str = ""
    about: str = ""
    weights: DefaultWeights = "pretrained"
    crop_pct: float | None = None
    note: str = ""
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ""
    labels: np.ndarray | None = None
    labelled: bool = True
    sorted: bool = False
    origin: Origin = ""
    images_hash: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images_hash", self.images_hash or self.hash)
        object.__setattr__(self, "title", self.title or self.name)

    def __len__(self) -> int:
        return len(self.groups)

    def limit(self, count: int | None) -> Source:
        """The first `count` images; all of them for None.

        Raises:
            TokredError: the count is not positive.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise TokredError(
                f"--limit is the number of images to evaluate and must be at least 1, got {count}."
            )
        return replace(self.take(range(count)), limited=True)

    def take(self, indices: Sequence[int] | np.ndarray) -> Source:
        """Only some images, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(
            self, images=Subset(self.images, chosen.tolist()), groups=self.groups[chosen], labels=labels
        )

    def relabel(self, mapping: np.ndarray, classes: int | None, note: str = "") -> Source:
        """Label l becomes mapping[l]; `note` says so."""
        assert self.labels is not None
        labels = np.asarray(mapping, dtype=np.int64)[self.labels]
        digest = hashlib.sha256(self.hash.encode() + labels.tobytes()).hexdigest()
        images = Relabelled(self.images, labels)
        return replace(self, images=images, labels=labels, hash=digest, classes=classes, sorted=False).noted(
            note
        )

    def unlabelled(self) -> Source:
        """The same images without labels."""
        labels = np.full(len(self), UNLABELLED)
        digest = hashlib.sha256(f"{self.images_hash} without labels".encode()).hexdigest()
        images = Relabelled(self.images, labels)
        return replace(
            self,
            images=images,
            labels=labels,
            hash=digest,
            classes=None,
            class_names=None,
            labelled=False,
            sorted=False,
            origin="",
        )

    def noted(self, note: str) -> Source:
        """With one more sentence in its note."""
        return replace(self, note=f"{self.note} {note}".strip())
