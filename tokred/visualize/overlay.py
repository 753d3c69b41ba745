"""Drawing the tokens of an image: merged patches in their mean colour, dropped patches pale."""

from __future__ import annotations

import numpy as np
from PIL import Image

_LUMA = np.array([0.299, 0.587, 0.114])
# Dropped patches: the grey of white, the remaining contrast, and the darkness and distance of hatched lines.
_PALE, _CONTRAST, _HATCH, _HATCH_STEP = 245.0, 0.2, -24.0, 7


def cell(
    image: np.ndarray,
    labels: np.ndarray | None,
    grid: tuple[int, int],
    scale: float = 1.0,
    lines: bool = True,
) -> Image.Image:
    """Draw the tokens of an image.

    The patches of one token have the mean colour of all their pixels. A thin line separates different
    tokens, light on dark colours and dark on light ones. Dropped patches show the image, pale, grey and
    hatched.

    Args:
        image: [H, W, 3] uint8.
        labels: [rows * columns] int, the token of each patch, -1 if it was dropped; None draws the image
            alone.
        grid: rows and columns of patches.
        scale: scale of the picture, which is round(H * scale) high and round(W * scale) wide.
        lines: whether to draw the lines and the hatching.
    """
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    resized = Image.fromarray(image)
    if scale != 1:
        resized = resized.resize((width, height), Image.Resampling.LANCZOS)
    if labels is None:
        return resized
    label = labels[_patch_of(height, width, grid)]  # [height, width]
    dropped = label < 0
    picture = group_colours(image, labels, grid)[label]
    picture[dropped] = dimmed(np.asarray(resized), hatch=lines)[dropped]
    if lines:
        edges = borders(label)
        picture[edges] = _line(picture[edges])
    return Image.fromarray(np.rint(picture).astype(np.uint8))


def group_colours(image: np.ndarray, labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean colour of each token's pixels, [tokens + 1, 3] float; the last row, zeros, is for label -1."""
    label = labels[_patch_of(image.shape[0], image.shape[1], grid)].ravel()
    slots = int(labels.max(initial=-1)) + 1
    count = np.bincount(label + 1, minlength=slots + 1)
    sums = [np.bincount(label + 1, channel, slots + 1) for channel in image.reshape(-1, 3).T]
    colours = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
    return np.vstack([colours[1:], np.zeros(3)])


def borders(label: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label, bool, as `label` [height, width]."""
    edges = np.zeros(label.shape, dtype=bool)
    edges[:, :-1] = label[:, :-1] != label[:, 1:]
    edges[:-1] |= label[:-1] != label[1:]
    return edges


def dimmed(image: np.ndarray, hatch: bool = True) -> np.ndarray:
    """An image [H, W, 3] in the style of dropped patches: grey, a fifth of its contrast, pale, hatched."""
    grey = _PALE + _CONTRAST * (image.astype(float) @ _LUMA - 255)
    if hatch:
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        grey = np.where((rows + columns) % _HATCH_STEP == 0, grey + _HATCH, grey)
    return np.repeat(grey[..., None], 3, axis=2)


def _patch_of(height: int, width: int, grid: tuple[int, int]) -> np.ndarray:
    """The patch that contains each pixel of a picture, [height, width]."""
    rows, columns = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    return rows[:, None] * grid[1] + columns


def _line(colours: np.ndarray) -> np.ndarray:
    """The colours of lines on the given colours, [K, 3]."""
    dark = (colours @ _LUMA < 130)[:, None]
    return np.where(dark, colours + 0.34 * (255 - colours), 0.66 * colours)
