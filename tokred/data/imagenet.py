"""ImageNet's classes, the names of its files, and the labels of its validation set.

The devkit numbers the classes in an order of its own (ILSVRC2012_ID, from 1), not in the order of the sorted
WordNet IDs, in which weights are trained; its `meta.mat` says which is which.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from tokred.data.source import Origin
from tokred.errors import TokredError
from tokred.utils.files import read_bytes, read_text

VALIDATION_IMAGES, PER_CLASS = 50_000, 50
_WNID = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\b")
_TRAINING = re.compile(r"n\d{8}_\d+\.")
_TRUTH, _META, _KAGGLE = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "LOC_val_solution.csv"
_DEVKITS = ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz", _TRUTH, f"data/{_TRUTH}", _KAGGLE)
_ABOVE = 4  # Kaggle's labels lie four folders above the images


@lru_cache
def class_names(classes: int = 1000) -> tuple[str, ...]:
    """WordNet IDs of the classes of models with that many classes, in order; empty where timm knows none."""
    subset = infer_imagenet_subset({"num_classes": classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else ()


def is_wnid(name: str) -> bool:
    """Whether this is a WordNet ID, such as n01440764."""
    return _WNID.fullmatch(name) is not None


def origin(paths: Sequence[str]) -> Origin:
    """Which of ImageNet's files these are: "validation", "training" or ""; by nine of ten names."""
    names = [Path(path).name for path in paths]

    def most(pattern: re.Pattern[str]) -> bool:
        return sum(pattern.match(name) is not None for name in names) >= 0.9 * len(names)

    return "validation" if most(_VALIDATION) else "training" if most(_TRAINING) else ""


def find_labels(root: Path) -> Path | None:
    """The devkit, its parts or Kaggle's table, beside the images or in one of the next folders above."""
    root = Path(os.path.realpath(root))
    for folder in (root, *list(root.parents)[:_ABOVE]):
        for name in _DEVKITS:
            if (folder / name).exists():
                return folder / name
    return None


def labels_of(paths: Iterable[str], labels: dict[int, str], file: Path) -> list[str]:
    """The WordNet ID of each validation file, by the number in its name; an error where it has no label."""
    wnids = []
    for path in paths:
        match = _VALIDATION.match(Path(path).name)
        wnid = labels.get(int(match[1])) if match else None
        if wnid is None:
            raise TokredError(
                f"{file} has no label for {Path(path).name}; it labels ILSVRC2012_val_00000001.JPEG to "
                f"_{max(labels):08d}."
            )
        wnids.append(wnid)
    return wnids


def read_labels(path: Path) -> dict[int, str]:
    """The WordNet ID of each validation image, by the image's number from 1.

    Args:
        path: the devkit (its folder or its tar.gz), its ground truth with meta.mat beside it, Kaggle's
            LOC_val_solution.csv, or a text file with one WordNet ID a line.

    Raises:
        TokredError: it is none of these.
    """
    try:
        if path.suffix == ".csv":
            labels = _kaggle(read_text(path))
        elif path.suffix == ".txt" and path.name != _TRUTH:
            labels = dict(enumerate(read_text(path).split(), 1))
        else:
            archived = path.is_file() and path.name != _TRUTH
            labels = _devkit(*(_archived(path) if archived else _unpacked(path)))
    except Exception as error:  # each format fails in its own way
        raise TokredError(
            f"{path} has no labels of ImageNet's validation set ({type(error).__name__}: {error}); expected "
            f"the devkit ILSVRC2012_devkit_t12 as a folder or tar.gz, with {_TRUTH} and {_META} in it, or "
            f"Kaggle's {_KAGGLE}."
        ) from error
    known = set(class_names())
    unknown = next((wnid for wnid in labels.values() if wnid not in known), None)
    if unknown is not None or not labels:
        raise TokredError(
            f"{path} labels images with {unknown or 'nothing'}, which is not one of the 1,000 classes of "
            "ImageNet-1K."
        )
    return labels


def _kaggle(text: str) -> dict[int, str]:
    """From rows such as "ILSVRC2012_val_00048981,n03995372 85 1 499 272"."""
    rows = list(csv.DictReader(io.StringIO(text)))
    return {int(row["ImageId"].rpartition("_")[2]): row["PredictionString"].split()[0] for row in rows}


def _unpacked(path: Path) -> tuple[bytes, bytes]:
    """Ground truth and meta.mat from a folder, from its data folder, or from beside the ground truth."""
    folders = (path.parent,) if path.is_file() else (path / "data", path)
    folder = next((folder for folder in folders if (folder / _TRUTH).exists()), folders[-1])
    return read_bytes(folder / _TRUTH), read_bytes(folder / _META)


def _archived(path: Path) -> tuple[bytes, bytes]:
    """The same from an archive, which is read and not unpacked."""
    parts: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            file = archive.extractfile(member) if name in (_TRUTH, _META) else None
            if file is not None:
                parts[name] = file.read()
    return parts[_TRUTH], parts[_META]


def _devkit(truth: bytes, meta: bytes) -> dict[int, str]:
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = {
        int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
        for synset in synsets
        if int(synset["num_children"]) == 0
    }
    return {number: leaves[int(line)] for number, line in enumerate(truth.split(), 1)}
