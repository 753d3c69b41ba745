"""Class maps: which class of a model each class of the data is, where the order of the folders' names does not tell."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers.class_map import load_class_map

from tokred.data import imagenet
from tokred.data.source import Source
from tokred.errors import TokredError
from tokred.utils.text import some


def load(path: Path) -> dict[str, int]:
    """Class indices by name.

    Args:
        path: .txt with a name a line, the first being class 0, as timm reads it; .csv with lines "name,index", with or without a
            header; or .json with names in order, or with an index for each name.

    Raises:
        TokredError: it is missing, of another form, or a pickle, whose reading can run code.
    """
    if not path.is_file():
        raise TokredError(
            f"No class map at {path}; give a .txt file with one class a line, or a .csv or .json file."
        )
    if path.suffix not in _READERS:
        why = (
            "reading a pickle can run code"
            if path.suffix in (".pkl", ".pickle", ".pt", ".pth")
            else "its form is not known"
        )
        raise TokredError(
            f"The class map {path} is not read ({why}); give a .txt file with one class a line, or a .csv or .json file."
        )
    try:
        pairs = [(str(name).strip(), int(index)) for name, index in _READERS[path.suffix](path)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise TokredError(
            f"The class map {path} cannot be read ({error}); expected a name and the index of its class."
        ) from error
    names = [name for name, _ in pairs]
    twice = (
        next((name for name in names if names.count(name) > 1), None)
        if len(set(names)) < len(names)
        else None
    )
    if twice is not None or not pairs or min(index for _, index in pairs) < 0:
        what = (
            f"has the class {twice!r} twice"
            if twice is not None
            else "has no class"
            if not pairs
            else "has a negative index"
        )
        raise TokredError(f"The class map {path} {what}; it needs one index, from 0, for each class.")
    return dict(pairs)


def _lines(path: Path) -> list[tuple[str, int]]:
    lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    found = load_class_map(str(path))  # one entry for lines that are the same
    return (
        list(found.items())
        if len(found) == len(lines)
        else [(line.strip(), index) for index, line in enumerate(lines)]
    )


def _table(path: Path) -> list[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError("a line has not two columns")
    return [(name, index) for number, (name, index) in enumerate(rows) if number or index.strip().isdecimal()]


def _json(path: Path) -> list[tuple[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        return list(content.items())
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, index) for index, name in enumerate(content)]
    raise ValueError("neither names nor indices by name")


_READERS = {".txt": _lines, ".csv": _table, ".json": _json}


def apply(source: Source, path: Path) -> Source:
    """The images with the labels that a class map gives their classes. Classes without names go by their numbers: "0", "1" ...

    Raises:
        TokredError: the images have no labels, or a class is not in the map.
    """
    given = load(path)
    if not source.labelled or source.labels is None:
        raise TokredError(f"{source.name} has no labels for --class-map to map; leave it out.")
    names = source.class_names or tuple(str(label) for label in range(int(source.labels.max()) + 1))
    if not given.keys() & set(names):  # lines such as "n01440764 tench, Tinca tinca"
        given = {name.split(maxsplit=1)[0]: index for name, index in given.items() if name}
    used = [names[label] for label in np.unique(source.labels)]
    missing = [name for name in used if name not in given]
    if missing:
        raise TokredError(
            f"The class map {path} lacks {len(missing)} of the {len(used)} classes of {source.name}: {some(missing)}."
        )
    mapping = np.array([given.get(name, -1) for name in names], dtype=np.int64)
    mapped = replace(source.relabel(mapping, None, f"Labels are mapped by {path.name}."), class_names=None)
    ordered = imagenet.class_names()
    odd = [
        name
        for name in used
        if imagenet.is_wnid(name) and given[name] < len(ordered) and ordered[given[name]] != name
    ]
    if odd:
        mapped = mapped.noted(
            f"{path.name} has {len(odd)} of ImageNet's classes at other indices than the weights of ImageNet-1K have: {some(odd)}."
        )
    return mapped
