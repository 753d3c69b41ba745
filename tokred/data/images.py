"""Single images: files in a fixed order, read strictly, as 8-bit colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from torch.utils.data import Dataset

from tokred.errors import UNLABELLED, UnreadableImage
from tokred.utils.files import check_regular


class Files:
    """A reader, in timm's sense, of image files: index to (open file, label).

    Args:
        paths: paths of the files.
        labels: [n] int64.
        root: folder to which names of files are relative.
    """

    def __init__(self, paths: Sequence[str], labels: np.ndarray, root: Path) -> None:
        self.paths, self.labels, self.root = paths, labels, root

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        try:
            check_regular(Path(self.paths[index]))
            return open(self.paths[index], "rb"), int(self.labels[index])
        except OSError as error:
            raise UnreadableImage(str(error), int(self.labels[index])) from error

    def filename(self, index: int, absolute: bool = False) -> str:
        """The path, relative to the root unless absolute."""
        path = Path(self.paths[index])
        return str(path if absolute else path.relative_to(self.root))


class StrictImages(Dataset[tuple[Image.Image, int]]):
    """Images of a timm reader; unlike in timm's own data set an unreadable one is an error that names it.

    `image.info["kind"]` says what a file is, if not plain 8-bit colour. Orientation in EXIF is not applied,
    as in published evaluations.

    Args:
        reader: index to (image or open file, label).
        labelled: whether what the reader has in second place is a label.
    """

    def __init__(self, reader: Any, labelled: bool = True) -> None:
        self.reader, self.labelled = reader, labelled

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label = UNLABELLED
        try:
            image, target = self.reader[index]
            label = int(target) if self.labelled and target is not None else UNLABELLED
            image = image if isinstance(image, Image.Image) else Image.open(image)
            kind, colour = _kind(image), _colour(image)
        except Exception as error:  # each format fails in its own way
            label = error.label if isinstance(error, UnreadableImage) else label
            name, reason = self._name(index), f"{error}".strip().splitlines() or [type(error).__name__]
            raise UnreadableImage(
                f"The image {name} cannot be read ({reason[0]}); repair or remove it.", label
            ) from error
        colour.info["kind"] = kind
        return colour, label

    def _name(self, index: int) -> str:
        """What the reader calls an image, if anything."""
        try:
            return str(self.reader.filename(index, absolute=True) or index)
        except Exception:  # the reader may fail again
            return str(index)


class Relabelled(Dataset[tuple[Image.Image, int]]):
    """The same images with other labels, [n]."""

    def __init__(self, images: Dataset[tuple[Image.Image, int]], labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label = int(self.labels[index])
        try:
            return self.images[index][0], label
        except UnreadableImage as error:
            raise UnreadableImage(str(error), label) from error


def _kind(image: Image.Image) -> str:
    """What an image file is, if not plain 8-bit colour."""
    modes = {
        "1": "greyscale",
        "L": "greyscale",
        "LA": "greyscale",
        "P": "palette",
        "RGBA": "transparency ignored",
        "RGB": "",
    }
    kinds = ["16-bit" if image.mode.startswith("I") else modes.get(image.mode, image.mode)]
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        kinds.append("EXIF rotation ignored")
    return ", ".join(filter(None, kinds))


def _colour(image: Image.Image) -> Image.Image:
    """The image in RGB. Pillow would clip 16 bits at 255 instead of scaling them."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.clip(values / 257 + 0.5, 0, 255).astype(np.uint8))
    return image.convert("RGB")
