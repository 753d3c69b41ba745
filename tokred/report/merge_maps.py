"""Merge maps: where the tokens of a few images went, and what each method then predicts."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tokred.errors import TokredError
from tokred.report.run_data import RunData
from tokred.tables.row import BASELINE
from tokred.visualize.overlay import cell

_MOST = 6  # images; what is more makes the page slow to open
_SIDE = 168  # pixels of a picture's longer side, whatever the model's input is


@dataclass(frozen=True)
class Picture:
    """An image, or its tokens after a method.

    Attributes:
        name: the method's name; "" for the image itself.
        uri: the picture as a `data:` address.
        size: width and height in pixels.
        prediction: the predicted class; "" where it is unknown.
        right: whether that is the label; None where either is unknown.
        changed: whether the dense model predicts another class.
    """

    name: str
    uri: str
    size: tuple[int, int]
    prediction: str
    right: bool | None
    changed: bool


@dataclass(frozen=True)
class Subject:
    """An image: its index, label and dense prediction ("" for none), and its pictures, itself first."""

    index: int
    label: str
    before: str
    pictures: list[Picture]


def subjects(data: RunData) -> list[Subject]:
    """The images in maps.npz.

    Raises:
        TokredError: the arrays are not those of maps.npz.
    """
    if not data.maps:
        return []
    try:
        maps = {name: data.maps[name] for name in ("index", "images", "names", "labels", "grid")}
        grid = (int(maps["grid"][0]), int(maps["grid"][1]))
        ranks = {data.name(row): rank for rank, row in enumerate(data.rows)}  # other names are last
        names = enumerate(map(str, maps["names"]))
        order = sorted(names, key=lambda item: ranks.get(item[1], len(ranks)))
        return [_subject(data, maps, i, order, grid) for i in range(min(_MOST, len(maps["index"])))]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise TokredError(
            "maps.npz is damaged; remove it to have a report without it, or run the comparison again."
        ) from error


def _subject(
    data: RunData, maps: dict[str, Any], i: int, order: list[tuple[int, str]], grid: tuple[int, int]
) -> Subject:
    index, image = int(maps["index"][i]), maps["images"][i]
    labels = data.predictions.labels if data.predictions else ()
    label = int(labels[index]) if index < len(labels) else -1
    before, scale = _predicted(data, BASELINE, index), _SIDE / max(image.shape[:2])
    pictures = []
    for place, name in [(-1, ""), *order]:
        if name == BASELINE:
            continue
        drawn = cell(image, None if place < 0 else maps["labels"][i, place].astype(np.int64), grid, scale)
        after = _predicted(data, name or BASELINE, index)
        picture = Picture(
            name=name,
            uri=_encoded(drawn),
            size=drawn.size,
            prediction=data.class_name(after),
            right=None if label < 0 or after < 0 else after == label,
            changed=bool(name) and min(after, before) >= 0 and after != before,
        )
        pictures.append(picture)
    return Subject(index, data.class_name(label), data.class_name(before), pictures)


def _predicted(data: RunData, name: str, index: int) -> int:
    """The class that a model predicts for an image; -1 where that is unknown."""
    predicted = data.predicted(name)
    return -1 if predicted is None or index >= len(predicted) else int(predicted[index])


def _encoded(picture: Image.Image) -> str:
    """A picture as a `data:` address."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
