"""Where images come from: the embedded benchmark, a folder, or a data set that timm reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset

from tokred.data import photodigits
from tokred.data.images import UNLABELLED, Relabelled
from tokred.errors import TokredError

EMBEDDED = "photodigits"

Origin = Literal["", "validation", "training"]  # of ImageNet's files, which their names tell


@dataclass(frozen=True)
class Source:
    """Images in a fixed order, their labels, and what a table must say about them.

    Attributes:
        images: index to (PIL image in RGB, label).
        name: of the data set.
        split: of it.
        hash: SHA-256 that changes when the images or their labels do: over pixels for PhotoDigits, over names and sizes for files.
        groups: [n], images that are not independent share a number.
        classes: number of classes; None where the reader does not know.
        limited: whether this is only the beginning of the split.
        embedded: whether this is PhotoDigits.
        note: sentences that a reader of the results needs.
        class_names: of the classes, in the order of the labels, where the reader knows.
        fingerprint: changes when a file is written to, even if its size stays; empty where there are no files.
        labels: [n] int64, where they are known before any image is read.
        labelled: whether the images have labels; else they are `UNLABELLED`, and models can only be compared with each other.
        sorted: whether the labels are nothing but the order of the folders' names, in which the weights may have been trained or not.
        origin: which of ImageNet's files these are, by their names.
        images_hash: as `hash`, of the images alone.
    """

    images: Dataset[tuple[Image.Image, int]]
    name: str
    split: str
    hash: str
    groups: np.ndarray
    classes: int | None
    limited: bool = False
    embedded: bool = False
    note: str = ""
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ""
    labels: np.ndarray | None = None
    labelled: bool = True
    sorted: bool = False
    origin: Origin = ""
    images_hash: str = ""

    def __post_init__(self) -> None:
        if not self.images_hash:
            object.__setattr__(self, "images_hash", self.hash)

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


def open_source(
    data: str | None = None,
    split: str | None = None,
    *,
    labels: bool = True,
    class_map: str | None = None,
    devkit: str | None = None,
    data_dir: str | None = None,
) -> Source:
    """The images to evaluate on.

    Args:
        data: None for PhotoDigits; a folder with one folder for each class (or with such folders for each split), with ImageNet's
            validation files, or with images that have no labels; or a name that timm reads, such as "hfds/imagenet-1k".
        split: by default "test" for PhotoDigits, "validation" elsewhere.
        labels: whether to use labels, where there are any.
        class_map: a file that says which class each label is; see `class_map.load`.
        devkit: the labels of ImageNet's validation files; see `imagenet.read_labels`.
        data_dir: where a data set that has a name lies.

    Raises:
        TokredError: no such folder, split or data set, or no labels where there should be some.
    """
    from tokred.data import class_map as maps
    from tokred.data import folders, timm_datasets

    if data is None or data == EMBEDDED:
        _refuse(
            {"--no-labels": not labels, "--class-map": class_map, "--devkit": devkit, "--data-dir": data_dir},
            "PhotoDigits",
        )
        chosen = split or "test"
        if chosen not in photodigits.SPLIT_IMAGES:
            raise TokredError(
                f"PhotoDigits has the splits {' and '.join(photodigits.SPLIT_IMAGES)} to evaluate on, not {chosen!r}."
            )
        return _open_embedded(chosen)
    if timm_datasets.is_name(data):
        _refuse({"--devkit": devkit}, data)
        source = timm_datasets.open_named(data, split, data_dir, labels)
    else:
        _refuse({"--data-dir": data_dir}, "a folder")
        source = folders.open_folder(data, split, labels, devkit)
    if class_map is not None:
        source = maps.apply(source, Path(class_map))
    return source if labels or not source.labelled else source.unlabelled()


def _refuse(given: dict[str, object], what: str) -> None:
    """Raise where an option was given that means nothing for these data."""
    name = next((name for name, value in given.items() if value), None)
    if name:
        raise TokredError(
            f"{name} means nothing for {what}; leave it out, or choose other images with --data."
        )


def _open_embedded(split: str) -> Source:
    images = photodigits.PhotoDigits(split)  # type: ignore[arg-type]
    digest, note = photodigits.SPLIT_HASHES[split], ""
    probe = photodigits.PhotoDigits(split, length=photodigits.PROBE_IMAGES)  # type: ignore[arg-type]
    if probe.pixel_hash() != photodigits.PROBE_HASHES[split]:
        digest = images.pixel_hash()
        note = "The libraries here draw other pixels than the published benchmark has, so do not compare with published tables."
    return Source(
        images, EMBEDDED, split, digest, images.groups(), photodigits.NUM_CLASSES, embedded=True, note=note
    )
