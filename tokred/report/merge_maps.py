"""Merge maps: the tokens of each method on a few images, and its predictions."""

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

_MOST = 6  # images; more would make the page slow to open
_SIDE = 168  # longer side of a picture in pixels


@dataclass(frozen=True)
class Picture:
    """A picture of an image or of its tokens after a method.

    Attributes:
        name: the method's name; "" for the image itself.
        uri: the picture as a `data:` URI.
        size: width and height in pixels.
        prediction: the predicted class; "" if unknown.
        right: whether that is the label; None if either is unknown.
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
    """An image: its index, label and dense prediction ("" if unknown), and its pictures, itself first."""

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
            "maps.npz is damaged; remove it to continue without it, or run the comparison again."
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
        drawing = cell(image, None if place < 0 else maps["labels"][i, place].astype(np.int64), grid, scale)
        after = _predicted(data, name or BASELINE, index)
        picture = Picture(
            name=name,
            uri=_encoded(drawing),
            size=drawing.size,
            prediction=data.class_name(after),
            right=None if label < 0 or after < 0 else after == label,
            changed=bool(name) and min(after, before) >= 0 and after != before,
        )
        pictures.append(picture)
    return Subject(index, data.class_name(label), data.class_name(before), pictures)


def _predicted(data: RunData, name: str, index: int) -> int:
    """The class that a model predicts for an image; -1 if unknown."""
    predicted = data.predicted(name)
    return -1 if predicted is None or index >= len(predicted) else int(predicted[index])


def _encoded(picture: Image.Image) -> str:
    """A picture as a `data:` URI."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
