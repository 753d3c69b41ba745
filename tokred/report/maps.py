"""Merge maps: where the tokens of a few images went, for each method, and what it then took the image for."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokred.errors import TokredError
from tokred.report.run_data import Material
from tokred.tables.row import BASELINE

_MOST = 6  # images; what is more makes the page slow to open
_SIDE = 168  # pixels of a picture's longer side, whatever the model's input is


@dataclass(frozen=True)
class Picture:
    """One cell: an image, or what is left of it.

    Attributes:
        name: of the method; "" for the image itself.
        uri: of the picture, as `data:`.
        size: width and height in pixels.
        answer: the class that the model names; "" where it is unknown.
        right: whether that is the label; None where either is unknown.
        changed: whether it is another one than the unreduced model's.
    """

    name: str
    uri: str
    size: tuple[int, int]
    answer: str
    right: bool | None
    changed: bool


@dataclass(frozen=True)
class Subject:
    """One image: its number in the data, its label and the unreduced model's answer ("" for none), its pictures, the image itself first."""

    index: int
    label: str
    before: str
    pictures: list[Picture]


def subjects(material: Material) -> list[Subject]:
    """The images in maps.npz.

    Raises:
        TokredError: the arrays are not those of maps.npz.
    """
    if not material.maps:
        return []
    try:
        maps = {name: material.maps[name] for name in ("index", "images", "names", "labels", "grid")}
        grid = (int(maps["grid"][0]), int(maps["grid"][1]))
        order = _order(material, [str(name) for name in maps["names"]])
        return [_subject(material, maps, i, order, grid) for i in range(min(_MOST, len(maps["index"])))]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise TokredError(
            "maps.npz is damaged; remove it to have a report without it, or run the comparison again."
        ) from error


def _order(material: Material, names: list[str]) -> list[tuple[int, str]]:
    """Where each method is in the file, and what it is called there, in the order of the table; other names at the end."""
    ranks = {material.outcome(row): rank for rank, row in enumerate(material.rows)}
    return sorted(enumerate(names), key=lambda item: ranks.get(item[1], len(ranks)))


def _subject(
    material: Material, maps: dict[str, Any], i: int, order: list[tuple[int, str]], grid: tuple[int, int]
) -> Subject:
    from tokred.visualize.overlay import cell

    index, image = int(maps["index"][i]), maps["images"][i]
    labels = material.predictions.get("labels", np.empty(0, dtype=np.int64))
    label = int(labels[index]) if index < len(labels) else -1
    before = _answer(material, BASELINE, index)
    pictures = []
    for place, name in [(-1, ""), *order]:
        if name == BASELINE:
            continue
        uri, size = _encoded(
            cell(
                image,
                None if place < 0 else maps["labels"][i, place].astype(np.int64),
                grid,
                _SIDE / max(image.shape[:2]),
            )
        )
        answer = _answer(material, name or BASELINE, index)
        right = None if label < 0 or answer < 0 else answer == label
        changed = bool(name) and min(answer, before) >= 0 and answer != before
        pictures.append(Picture(name, uri, size, material.class_name(answer), right, changed))
    return Subject(index, material.class_name(label), material.class_name(before), pictures)


def _answer(material: Material, name: str, index: int) -> int:
    found = material.predictions.get(f"{name}/prediction")
    return -1 if found is None or index >= len(found) else int(found[index])


def _encoded(picture: Any) -> tuple[str, tuple[int, int]]:
    """A Pillow image as a `data:` address, and its size."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), picture.size
