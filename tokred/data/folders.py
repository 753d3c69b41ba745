"""Folders of images: class folders, ImageNet's validation files in one folder, or images without labels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from tokred.data import folder_tree, imagenet
from tokred.data.folder_tree import FolderTree
from tokred.data.images import Files, StrictImages
from tokred.data.source import Source, hash_lines
from tokred.errors import UNLABELLED, TokredError

VALIDATION_NAMES = {"validation", "val", "valid", "evaluation", "eval"}  # which timm takes for one another
TRAINING_NAMES = {"train", "training"}
SPLIT_NAMES = VALIDATION_NAMES | TRAINING_NAMES | {"test"}
_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")  # where Kaggle's copy of ImageNet has its splits


def open_folder(data: str, split: str | None, labels: bool = True, devkit: str | None = None) -> Source:
    """The images of a folder.

    Args:
        data: the folder, or one that holds it as a split.
        split: by default "validation".
        labels: whether to look for labels.
        devkit: the labels of ImageNet's validation files.

    Raises:
        TokredError: no such folder or split, no images, images beside class folders, or ImageNet's files
            without their labels.
    """
    if not Path(data).exists():
        raise TokredError(
            f"No data at {data!r}: give a folder with one folder of images per class, or omit --data for "
            "PhotoDigits."
        )
    if not Path(data).is_dir():
        raise TokredError(
            f"{data} is a file; --data takes a folder with one folder of images per class. Unpack an archive "
            "first."
        )
    base = split_base(Path(data))
    root, chosen = _split_folder(base, split)
    tree = folder_tree.walk(root)
    if not tree.images:
        endings = ", ".join(get_img_extensions())
        raise TokredError(
            f"No images can be read from {data!r}, split {chosen!r} (no file ends with {endings}); expected "
            "one folder per class."
        )
    name = os.path.basename(os.path.realpath(base))
    return _Folder(tree, name, chosen).source(labels, devkit).noted(tree.note)


def split_base(data: Path) -> Path:
    """The folder that holds the splits: of Kaggle's copy of ImageNet it lies deeper."""
    return next((data / inner for inner in _KAGGLE if (data / inner).is_dir()), data)


def split_names(split: str) -> set[str]:
    """All names of a split."""
    return next((names for names in (VALIDATION_NAMES, TRAINING_NAMES) if split in names), {split})


def splits_in(data: Path) -> set[str]:
    """Folders in a folder that are named like splits."""
    return {path.name for path in data.iterdir() if path.is_dir()} & SPLIT_NAMES if data.is_dir() else set()


def _split_folder(base: Path, split: str | None) -> tuple[Path, str]:
    """The folder of a split, and its name; the folder itself where it has no splits and none is asked for."""
    wanted = split or "validation"
    if os.path.isabs(wanted) or ".." in Path(wanted).parts:
        raise TokredError(f"--split is the name of a folder in {base}, such as validation; got {wanted!r}.")
    accepted = split_names(wanted)
    for name in (wanted, *sorted(accepted)):
        if (base / name).is_dir():
            return base / name, wanted
    splits = sorted(splits_in(base))
    if not (splits or split) or os.path.basename(os.path.realpath(base)) in accepted:
        return base, wanted
    raise TokredError(
        f"{base} has no split {wanted!r} (there are: {', '.join(splits) or 'none'}); "
        "choose another --split, or give the folder that contains the class folders."
    )


class _Folder:
    """The images of a folder, each with the name of the subfolder in which it lies."""

    def __init__(self, tree: FolderTree, name: str, split: str) -> None:
        self.root, self.paths, self.name, self.split = tree.root, tree.images, name, split
        folders = [tree.folder_of(path) for path in self.paths]
        self.names = tuple(sorted(set(folders), key=lambda folder: (natural_key(folder), folder)))
        places = {folder: place for place, folder in enumerate(self.names)}
        self.targets = np.array([places[folder] for folder in folders], dtype=np.int64)
        self.origin = imagenet.origin(self.paths)

    def source(self, labels: bool, devkit: str | None) -> Source:
        if not labels:
            return self._source(np.full(len(self.paths), UNLABELLED), None)
        pairs = zip(self.paths, self.targets, strict=True)
        loose = [path for path, target in pairs if not self.names[target]]
        if 0 < len(loose) < len(self.paths):
            raise TokredError(
                f"{len(loose)} of the {len(self.paths)} images in {self.root} are outside its class folders, "
                f"such as {Path(loose[0]).name}; remove them, or use --no-labels."
            )
        if devkit is not None and self.origin != "validation":
            raise TokredError(
                f"--devkit labels files such as ILSVRC2012_val_00000001.JPEG, but {self.root} holds others."
            )
        if loose:
            return self._flat(devkit)
        if devkit is not None:
            self._compare(imagenet.read_labels(Path(devkit)), devkit)
        return self._source(self.targets, self.names, by_name=True)

    def _flat(self, devkit: str | None) -> Source:
        """Images in one folder: ImageNet's validation set as it is published, or images without labels."""
        if self.origin != "validation":
            return self._source(np.full(len(self.paths), UNLABELLED), None)
        file = Path(devkit) if devkit is not None else imagenet.find_labels(self.root)
        if file is None:
            raise TokredError(
                f"{self.root} is ImageNet's validation set in one folder, without labels; put "
                "ILSVRC2012_devkit_t12.tar.gz beside it, name it with --devkit, or use --no-labels."
            )
        classes = imagenet.class_names()
        index = {wnid: i for i, wnid in enumerate(classes)}
        wnids = imagenet.labels_of(self.paths, imagenet.read_labels(file), file)
        labels = np.array([index[wnid] for wnid in wnids], dtype=np.int64)
        return self._source(labels, classes).noted(f"Labels come from {file.name}.")

    def _compare(self, labels: dict[int, str], devkit: str) -> None:
        """Raise where class folders and the devkit do not agree."""
        wnids = imagenet.labels_of(self.paths, labels, Path(devkit))
        wrong = [i for i, wnid in enumerate(wnids) if wnid != self.names[self.targets[i]]]
        if wrong:
            raise TokredError(
                f"{len(wrong)} of the {len(wnids)} images in {self.root} are in the wrong class folder "
                f"according to {devkit}: {Path(self.paths[wrong[0]]).name} is in "
                f"{self.names[self.targets[wrong[0]]]}, not in {wnids[wrong[0]]}."
            )

    def _source(self, labels: np.ndarray, names: tuple[str, ...] | None, by_name: bool = False) -> Source:
        files = Files(self.paths, labels, self.root)
        stats = [_status(path) for path in self.paths]
        sizes = (0 if status is None else status.st_size for status in stats)
        images_hash = hash_lines(f"{files.filename(index)}\0{size}" for index, size in enumerate(sizes))
        full = images_hash
        if not by_name:  # labels that the folders' names do not tell are no part of the images' names
            full = hashlib.sha256(bytes.fromhex(images_hash) + labels.tobytes()).hexdigest()
        return Source(
            images=StrictImages(files),
            name=self.name,
            split=self.split,
            hash=full,
            groups=np.arange(len(files)),
            classes=None if names is None else len(names),
            class_names=names,
            fingerprint=hash_lines(str(0 if status is None else status.st_mtime_ns) for status in stats),
            labels=labels,
            labelled=names is not None,
            sorted=by_name,
            origin=self.origin,
            images_hash=images_hash,
        )


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
