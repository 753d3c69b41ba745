"""Training images of PhotoDigits, whole or windows around the digit, with a target for every patch token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokred.data import photodigits
from tokred.training.backbone.recipe import Recipe

WINDOW = 7  # tokens on a side of a window: the digit always fits


class TrainingImages(Dataset[tuple[Tensor, int, Tensor, Tensor]]):
    """The images of a run, in order.

    An item has the pixels, uint8 [3, S, S], the label, the target of each token, [N], and the position of
    each token in the whole image, [N].
    """

    def __init__(self, recipe: Recipe, patch: int) -> None:
        self.recipe, self.patch, self.grid = recipe, patch, photodigits.SIZE // patch

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor, Tensor]:
        step = index // self.recipe.batch_size
        image, mask, label, _ = photodigits.render(
            "train", self.recipe.seed, index, ease=self.recipe.ease(step)
        )
        targets = photodigits.token_targets(mask, label, self.grid)
        side = self.grid if self.recipe.whole(step) else min(WINDOW, self.grid)
        row, column = _window_origin(
            mask, self.patch, self.grid, side, np.random.RandomState([self.recipe.seed, index])
        )
        tokens = (np.arange(row, row + side)[:, None] * self.grid + np.arange(column, column + side)).reshape(
            -1
        )
        p = self.patch
        pixels = np.asarray(image)[row * p : (row + side) * p, column * p : (column + side) * p].transpose(
            2, 0, 1
        )
        return (
            torch.from_numpy(pixels.copy()),
            label,
            torch.from_numpy(targets[tokens]),
            torch.from_numpy(tokens),
        )


def _window_origin(
    mask: Any, patch: int, grid: int, side: int, rng: np.random.RandomState
) -> tuple[int, int]:
    """Row and column of the first token of a random window that contains as much of the digit as possible."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    origin = []
    for low, high in ((top, bottom), (left, right)):
        first, last = low // patch, -(-high // patch)
        least, most = max(0, last - side), min(grid - side, first)
        origin.append(
            rng.randint(least, most + 1)
            if least <= most
            else max(0, min(grid - side, (first + last - side) // 2))
        )
    return origin[0], origin[1]
