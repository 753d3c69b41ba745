"""Data sets that timm reads by name: hfds/ (Hugging Face), torch/ (torchvision), wds/ (webdataset shards)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset

from tokred.data import webdataset
from tokred.data.images import StrictImages
from tokred.data.source import Source, hash_lines
from tokred.errors import UNLABELLED, TokredError

_PREFIXES = ("hfds", "torch", "wds", "tfds", "hfids")


def is_name(data: str) -> bool:
    """Whether this is the name of a data set and no folder."""
    prefix, slash, _ = data.partition("/")
    return bool(slash) and prefix.lower() in _PREFIXES and not Path(data).exists()


def open_named(data: str, split: str | None, data_dir: str | None, labels: bool = True) -> Source:
    """Open a data set by its name.

    Args:
        data: name, such as "hfds/imagenet-1k", "torch/cifar10" or "wds/shards/val-{000..063}.tar".
        split: name of the split; by default "validation".
        data_dir: folder of the data set; for Hugging Face the cache.
        labels: whether to use labels.

    Raises:
        TokredError: the data set cannot be opened, or has its images in no fixed order.
    """
    prefix, _, rest = data.partition("/")
    prefix, chosen = prefix.lower(), split or "validation"
    if prefix in ("tfds", "hfids"):
        raise TokredError(
            f"{prefix}/ streams images, but tokred needs random access; use hfds/, wds/ or class folders for "
            "the same data."
        )
    try:
        if prefix == "wds":
            return webdataset.open_shards(rest, split, data_dir, labels)
        if prefix == "torch":
            source = _open_torch(rest, chosen, data_dir)
        else:
            source = _open_hfds(data, rest, chosen, data_dir)
    except TokredError:
        raise
    except Exception as error:  # each library fails in its own way
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise TokredError(
            f"No images can be read from {data!r}, split {chosen!r} ({reason}); see --split and --data-dir."
        ) from error
    without = source.labels is not None and len(source) > 0 and bool((source.labels < 0).all())
    return source.unlabelled() if without and labels else source


def _open_torch(name: str, split: str, data_dir: str | None) -> Source:
    """A data set of torchvision, from files that are already there."""
    if data_dir is None:
        raise TokredError(f"torch/{name} needs the folder of its files; set --data-dir.")
    images = create_dataset(f"torch/{name}", root=data_dir, split=split)
    files = sorted(path for path in Path(data_dir).rglob("*") if path.is_file())
    sizes = (f"{file.relative_to(data_dir)}\0{file.stat().st_size}" for file in files)
    names = getattr(images, "wnids", None) or getattr(images, "classes", None)
    targets = getattr(images, "targets", None)
    return Source(
        images=StrictImages(images),
        name=f"torch/{name}",
        split=split,
        hash=hash_lines((f"{name} {split} {len(images)}", *sizes)),
        groups=np.arange(len(images)),
        classes=len(names) if names else None,
        class_names=tuple(map(str, names)) if names else None,
        fingerprint=hash_lines(str(file.stat().st_mtime_ns) for file in files),
        labels=None if targets is None else np.asarray(targets, dtype=np.int64),
    )


def _open_hfds(data: str, name: str, split: str, cache: str | None) -> Source:
    """A data set of Hugging Face, from its cache, a local folder or the hub."""
    import datasets

    table = datasets.load_dataset(name, split=split, cache_dir=cache)
    image = _column(table.features, "image", datasets.Image)
    label = _column(table.features, "label", datasets.ClassLabel)
    if image is None:
        raise TokredError(f"{data} has no column of images (there are: {', '.join(table.column_names)}).")
    reader = create_dataset(data, root=cache, split=split, input_key=image, target_key=label or image).reader
    column = [None] * len(table) if label is None else table.select_columns([label])[:][label]
    digest = hashlib.sha256(f"{reader.dataset._fingerprint} {len(reader)}".encode()).hexdigest()
    names = tuple(getattr(table.features[label], "names", None) or ()) if label else ()
    return Source(
        images=StrictImages(reader, labelled=label is not None),
        name=data,
        split=split,
        hash=digest,
        groups=np.arange(len(reader)),
        classes=len(names) or None,
        class_names=names or None,
        labels=np.array([UNLABELLED if one is None else int(one) for one in column], dtype=np.int64),
    )


def _column(features: Any, name: str, kind: type) -> str | None:
    """The column of that name, or the only one of its kind."""
    if name in features:
        return name
    fitting = [key for key, feature in features.items() if isinstance(feature, kind)]
    return fitting[0] if len(fitting) == 1 else None
