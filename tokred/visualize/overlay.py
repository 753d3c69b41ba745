"""One image with its tokens drawn into it: groups in the mean colours of their pixels, lines between them, dropped patches pale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from rich.text import Text

_LUMA = np.array([0.299, 0.587, 0.114])
_PALE, _CONTRAST, _HATCH = (
    245.0,
    0.2,
    -24.0,
)  # dropped patches: white there, contrast that is left, and what lines take away
_HATCH_STEP = 7  # pixels from line to line


def cell(
    image: np.ndarray,
    labels: np.ndarray | None,
    grid: tuple[int, int],
    scale: float = 1.0,
    lines: bool = True,
) -> Image.Image:
    """Draw where the patches of an image went.

    A group of patches has the mean colour of all its pixels. A thin line runs wherever neighbours belong to different groups, light on dark
    colours and dark on light ones. Dropped patches show the image, pale, grey and hatched.

    Args:
        image: [H, W, 3] uint8.
        labels: [rows * columns] int, the group of each patch, -1 where it was dropped; None draws the image alone.
        grid: rows and columns of patches.
        scale: of the picture, which is round(H * scale) high and round(W * scale) wide.
        lines: draw the lines and the hatching.
    """
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    resized = (
        Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        if scale != 1
        else Image.fromarray(image)
    )
    if labels is None:
        return resized
    label = labels[_patch_of(height, width, grid)]  # [height, width]
    dropped = label < 0
    drawn = group_colours(image, labels, grid)[label]
    drawn[dropped] = dimmed(np.asarray(resized), hatch=lines)[dropped]
    if lines:
        edges = borders(label)
        drawn[edges] = _line(drawn[edges])
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


def group_colours(image: np.ndarray, labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean colour of every group's pixels, [groups + 1, 3] float; the last row, zeros, is there for -1."""
    label = labels[_patch_of(image.shape[0], image.shape[1], grid)].ravel()
    slots = int(labels.max(initial=-1)) + 1
    index = np.where(label < 0, slots, label)
    count = np.bincount(index, minlength=slots + 1)
    sums = [
        np.bincount(index, weights=image[..., channel].ravel(), minlength=slots + 1) for channel in range(3)
    ]
    colours = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
    colours[slots] = 0
    return colours


def borders(label: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label: bool, in the shape of label [height, width]."""
    edges = np.zeros(label.shape, dtype=bool)
    edges[:, :-1] = label[:, :-1] != label[:, 1:]
    edges[:-1] |= label[:-1] != label[1:]
    return edges


def dimmed(image: np.ndarray, hatch: bool = True) -> np.ndarray:
    """Colours of an image [H, W, 3] as dropped patches show it: grey, a fifth of its contrast, pale, with diagonal lines."""
    grey = _PALE + _CONTRAST * (image.astype(float) @ _LUMA - 255)
    if hatch:
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        grey = np.where((rows + columns) % _HATCH_STEP == 0, grey + _HATCH, grey)
    return np.repeat(grey[..., None], 3, axis=2)


def half_blocks(image: Image.Image) -> Text:
    """A small picture as lines of text for a terminal: two pixels in each character, one above the other."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    values = np.asarray(image.convert("RGB"))
    if len(values) % 2:
        values = np.concatenate([values, values[-1:]])
    text = Text(no_wrap=True, end="")
    for row, (above, below) in enumerate(zip(values[::2].tolist(), values[1::2].tolist(), strict=True)):
        text.append("\n" if row else "")
        for high, low in zip(above, below, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*high), bgcolor=Color.from_rgb(*low)))
    return text


def _patch_of(height: int, width: int, grid: tuple[int, int]) -> np.ndarray:
    """The patch that each pixel of a picture of this size belongs to, [height, width]."""
    rows, columns = np.arange(height) * grid[0] // height, np.arange(width) * grid[1] // width
    return rows[:, None] * grid[1] + columns


def _line(colours: np.ndarray) -> np.ndarray:
    """The colour of a line over colours [K, 3]."""
    dark = (colours @ _LUMA < 130)[:, None]
    return np.where(dark, colours + 0.34 * (255 - colours), 0.66 * colours)
