"""Webdataset shards: local tar files, read by place, so that every image has an index.

timm and webdataset stream shards, so that an image's place depends on the number of processes. Here the
members of all shards are listed once, and an image is read from its place in the file. Members that share a
name up to its first dot are one sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from timm.utils.misc import natural_key

from tokred.data.folders import SPLIT_NAMES, split_names
from tokred.data.images import StrictImages
from tokred.data.source import Source, hash_lines
from tokred.errors import UNLABELLED, TokredError
from tokred.utils.files import read_text

_IMAGES = ("jpg", "jpeg", "png", "webp")
_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class Sample:
    """One sample of a shard: its parts by extension, each with its offset and length in bytes."""

    shard: Path
    key: str
    parts: dict[str, tuple[int, int]]

    def read(self, extension: str) -> bytes:
        """One part."""
        place, length = self.parts[extension]
        with self.shard.open("rb") as file:
            file.seek(place)
            return file.read(length)

    @property
    def image(self) -> str | None:
        """The extension of the image."""
        return next((extension for extension in self.parts if extension.lower() in _IMAGES), None)


class Shards:
    """A reader, in timm's sense, of samples: index to (open file, label)."""

    def __init__(self, samples: Sequence[Sample], labels: np.ndarray) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        sample = self.samples[index]
        return io.BytesIO(sample.read(sample.image or "")), int(self.labels[index])

    def filename(self, index: int, absolute: bool = False) -> str:
        """Shard and key."""
        sample = self.samples[index]
        return f"{sample.shard if absolute else sample.shard.name}/{sample.key}"


def open_shards(place: str, split: str | None, data_dir: str | None, wanted: bool = True) -> Source:
    """Open the images of shards.

    Args:
        place: folder of shards, or shards such as "DIR/val-{000..063}.tar", relative to `data_dir`.
        split: name of a split, by the names of the shards or by _info.json, as timm has it; or names of
            shards.
        data_dir: folder that holds `place`.
        wanted: whether to read labels.

    Raises:
        TokredError: there are no such shards, or they cannot be read by place.
    """
    if re.match(r"[a-z0-9]+://|pipe:", place):
        raise TokredError(f"{place} is not a local file; download the shards and give their folder.")
    path = Path(data_dir or "") / place
    if split is not None and ".tar" in split:  # as timm takes it, with the number of images behind a bar
        path, split = (path if path.is_dir() else path.parent) / split.partition("|")[0], None
    files = _files(path, split)
    samples = [sample for file in files for sample in _index(file) if sample.image is not None]
    if not samples:
        raise TokredError(f"The shards in {path} have no images ({', '.join(_IMAGES)}); see --split.")
    labels = _labels(samples) if wanted else np.full(len(samples), UNLABELLED)
    images_hash = hash_lines(f"{one.key}\0{one.parts[one.image or ''][1]}" for one in samples)
    name = os.path.basename(os.path.realpath(path if path.is_dir() else path.parent))
    return Source(
        images=StrictImages(Shards(samples, labels)),
        name=f"wds/{name}",
        split=split or "validation",
        hash=hashlib.sha256(images_hash.encode() + labels.tobytes()).hexdigest(),
        groups=np.arange(len(samples)),
        classes=None,
        fingerprint=hash_lines(str(file.stat().st_mtime_ns) for file in files),
        labels=labels,
        labelled=bool((labels != UNLABELLED).all()),
        images_hash=images_hash,
    )


def _files(path: Path, split: str | None) -> list[Path]:
    """The shards of a split in a folder, or those of a pattern; at least one, and all are there."""
    files = _of_split(path, split) if path.is_dir() else list(_expand(str(path)))
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None or not files:
        raise TokredError(
            f"There is no shard at {missing or path}; wds/ takes a folder of local .tar files, or files such "
            "as DIR/val-{000..063}.tar."
        )
    return files


def _expand(pattern: str) -> Iterator[Path]:
    """Files of a pattern with ranges such as {000..063}; several patterns are separated by "::"."""
    for part in pattern.split("::"):
        match = _RANGE.search(part)
        if match is None:
            yield Path(part)
            continue
        first, last = match.groups()
        for number in range(int(first), int(last) + 1):
            yield from _expand(f"{part[: match.start()]}{number:0{len(first)}d}{part[match.end() :]}")


def _listed(info: Path) -> dict[str, list[str]]:
    """The names of shards of each split in an _info.json."""
    try:
        splits = json.loads(read_text(info)).get("splits", {})
        return {split: [str(name) for name in facts["filenames"]] for split, facts in splits.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TokredError(
            f"{info} does not list the shards of each split, as timm's webdataset format does; repair it, or "
            "remove it."
        ) from error


def _of_split(folder: Path, split: str | None) -> list[Path]:
    """The shards of a split: those that _info.json lists, else those named by it, else all."""
    wanted = split or "validation"
    accepted = split_names(wanted)
    for info in (folder / "_info.json", folder / "info.json"):
        if info.exists():
            splits = _listed(info)
            chosen = next((splits[name] for name in (wanted, *sorted(accepted)) if name in splits), None)
            if chosen is None:
                raise TokredError(
                    f"{info} has no split {wanted!r} (there are: {', '.join(splits) or 'none'}); choose "
                    "with --split."
                )
            return [folder / name for name in chosen]
    shards = sorted(folder.glob("*.tar"), key=lambda path: natural_key(path.name))
    named = {path: set(re.split(r"[-_.\d]+", path.name)) & (SPLIT_NAMES | {wanted}) for path in shards}
    if not any(named.values()) and not split:
        return shards
    chosen_shards = [path for path in shards if named[path] & accepted]
    if shards and not chosen_shards:
        others = sorted(set().union(*named.values()))
        raise TokredError(
            f"The shards in {folder} have no split {wanted!r} (there are: {', '.join(others) or 'none'}); "
            "see --split."
        )
    return chosen_shards


def _index(shard: Path) -> Iterator[Sample]:
    """The samples of one shard, in its order."""
    try:
        with tarfile.open(shard, "r:") as archive:  # a compressed one cannot be read by place
            names = ((_SAMPLE.fullmatch(member.name), member) for member in archive if member.isfile())
            members = ((match[1], match[2], member) for match, member in names if match is not None)
            for key, parts in groupby(members, key=itemgetter(0)):
                places = {name: (member.offset_data, member.size) for _, name, member in parts}
                yield Sample(shard, key, places)
    except (tarfile.TarError, OSError) as error:
        raise TokredError(
            f"The shard {shard} cannot be read ({error}); it must be a complete, uncompressed tar file."
        ) from error


def _labels(samples: Sequence[Sample]) -> np.ndarray:
    """[n] int64, from .cls, else from "label" in .json; `UNLABELLED` for all if no sample has any.

    Raises:
        TokredError: only some samples have a label, or one is no number.
    """
    labels = np.full(len(samples), UNLABELLED)
    for index, sample in enumerate(samples):
        try:
            if "cls" in sample.parts:
                labels[index] = int(sample.read("cls"))
            elif "json" in sample.parts:
                labels[index] = int(json.loads(sample.read("json")).get("label", UNLABELLED))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise TokredError(
                f"The label of {sample.shard}/{sample.key} is not a number ({error})."
            ) from error
    without = np.flatnonzero(labels == UNLABELLED)
    if 0 < len(without) < len(samples):
        first = samples[without[0]]
        raise TokredError(
            f"{len(without)} of the {len(samples)} images have no label, such as {first.shard}/{first.key}; "
            "add .cls files, or use --no-labels."
        )
    return labels
