"""Class maps: files that say which class of a model each class of the data is."""

from __future__ import annotations

import csv
import json
from collections import Counter
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
        path: .txt with one name a line, the first being class 0, as timm reads it; .csv with lines
            "name,index", with or without a header; or .json with names in order, or with an index for each
            name.

    Raises:
        TokredError: it is missing, of another form, or a pickle, whose reading can run code.
    """
    if not path.is_file():
        raise TokredError(
            f"There is no class map at {path}; give a .txt file with one class per line, or a .csv or .json "
            "file."
        )
    if path.suffix not in _READERS:
        pickled = path.suffix in (".pkl", ".pickle", ".pt", ".pth")
        why = "reading a pickle can run code" if pickled else "its form is not known"
        raise TokredError(
            f"The class map {path} cannot be read ({why}); give a .txt file with one class per line, or a "
            ".csv or .json file."
        )
    try:
        pairs = [(str(name).strip(), int(index)) for name, index in _READERS[path.suffix](path)]
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        raise TokredError(
            f"The class map {path} cannot be read ({error}); expected a name and the index of its class."
        ) from error
    names = [name for name, _ in pairs]
    problems = [f"has the class {name!r} twice" for name, count in Counter(names).items() if count > 1]
    if not pairs:
        problems.append("has no class")
    elif min(index for _, index in pairs) < 0:
        problems.append("has a negative index")
    if problems:
        raise TokredError(f"The class map {path} {problems[0]}; it needs one index, from 0, for each class.")
    return dict(pairs)


def _lines(path: Path) -> list[tuple[str, int]]:
    lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    classes = load_class_map(str(path))
    if len(classes) < len(lines):  # some lines are the same, which `load` reports
        return [(line.strip(), index) for index, line in enumerate(lines)]
    return list(classes.items())


def _table(path: Path) -> list[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError("a line without two columns")
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
    """Relabel images by a class map. Classes without names go by their numbers: "0", "1" ...

    Raises:
        TokredError: the images have no labels, or a class is not in the map.
    """
    indices = load(path)
    if not source.labelled or source.labels is None:
        raise TokredError(f"{source.name} has no labels, so --class-map cannot be used.")
    names = source.class_names or tuple(str(label) for label in range(int(source.labels.max()) + 1))
    if not indices.keys() & set(names):  # lines such as "n01440764 tench, Tinca tinca"
        indices = {name.split(maxsplit=1)[0]: index for name, index in indices.items() if name}
    used = [names[label] for label in np.unique(source.labels)]
    missing = [name for name in used if name not in indices]
    if missing:
        raise TokredError(
            f"The class map {path} lacks {len(missing)} of the {len(used)} classes of {source.name}: "
            f"{some(missing)}."
        )
    mapping = np.array([indices.get(name, -1) for name in names], dtype=np.int64)
    mapped = replace(source.relabel(mapping, None, f"Labels are mapped by {path.name}."), class_names=None)
    ordered = imagenet.class_names()
    wnids = [name for name in used if imagenet.is_wnid(name) and indices[name] < len(ordered)]
    moved = [name for name in wnids if ordered[indices[name]] != name]
    if moved:
        mapped = mapped.noted(
            f"{path.name} has {len(moved)} of ImageNet's classes at other indices than in ImageNet-1K: "
            f"{some(moved)}."
        )
    return mapped
