"""Images that a user names, as files, in memory or by their number in a data set; and names of classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset

from tokred.data import imagenet
from tokred.data.images import StrictImages
from tokred.data.source import Source
from tokred.errors import UNLABELLED, TokredError
from tokred.models.zoo import Loaded
from tokred.utils.files import NOT_REGULAR, is_stream

Given = str | Path | Image.Image


def source(images: Sequence[Given]) -> Source:
    """Files or Pillow images, without labels.

    Raises:
        TokredError: there is no such file.
    """
    for path in (Path(image) for image in images if not isinstance(image, Image.Image)):
        if path.is_dir():
            raise TokredError(
                f"{path} is a folder; give image files, or the folder of a data set with --data, and --index."
            )
        if is_stream(path):
            raise TokredError(f"{path} {NOT_REGULAR}.")
        if not path.exists():
            raise TokredError(
                f"There is no image at {path}; give image files, or choose images of a data set with --index."
            )
    return Source(
        images=StrictImages(_Reader(images)),
        name="images",
        split="",
        hash="",
        groups=np.arange(len(images)),
        classes=None,
        labelled=False,
    )


def names(images: Sequence[Given]) -> list[str]:
    """Of each image: its file's, or a number."""
    return [
        f"image {i}" if isinstance(image, Image.Image) else Path(image).name for i, image in enumerate(images)
    ]


def check_index(data: Source, index: Sequence[int] | None, default: int = 3) -> list[int]:
    """Numbers of images of a data set, each once; the first few for None.

    Raises:
        TokredError: there is no such image, or none is asked for.
    """
    if index is None:
        return list(range(min(default, len(data))))
    if not len(index):
        raise TokredError("--index needs at least one image, such as 0 or 3,17,40.")
    for i in index:
        if not 0 <= i < len(data):
            raise TokredError(
                f"{data.name}, {data.split} split, has images 0 to {len(data) - 1}; got --index {i}."
            )
    return list(dict.fromkeys(int(i) for i in index))


def class_names(data: Source | None, loaded: Loaded) -> tuple[str, ...] | None:
    """Names of a model's classes, from the data set or timm's weights; None if unknown."""
    classes = loaded.model.num_classes
    names: tuple[str, ...] | None = None
    if data is not None and data.class_names:
        names = data.class_names
        if all(map(imagenet.is_wnid, names)):
            info = ImageNetInfo("imagenet-21k")
            known = {info.index_to_label_name(i): i for i in range(info.num_classes())}
            names = tuple(info.index_to_description(known[name]) if name in known else name for name in names)
    elif loaded.weights.startswith("timm ") and infer_imagenet_subset(loaded.model):
        info = ImageNetInfo(infer_imagenet_subset(loaded.model))
        names = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    return names if names and len(names) == classes else None


class _Reader:
    """What `StrictImages` reads."""

    def __init__(self, images: Sequence[Given]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = self.images[index]
        if isinstance(image, Image.Image):
            return image, UNLABELLED
        with warnings.catch_warnings():  # an image that is too large for Pillow is an error, not a warning
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(image), UNLABELLED

    def filename(self, index: int, absolute: bool = False) -> str:
        image = self.images[index]
        return names(self.images)[index] if isinstance(image, Image.Image) else str(image)
