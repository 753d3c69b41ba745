"""Training images of PhotoDigits, whole or windows around the digit, with a target for every patch token."""

from __future__ import annotations

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
        recipe, p, step = self.recipe, self.patch, index // self.recipe.batch_size
        image, mask, label, _ = photodigits.render("train", recipe.seed, index, ease=recipe.ease(step))
        side = self.grid if recipe.whole(step) else min(WINDOW, self.grid)
        rng = np.random.RandomState([recipe.seed, index])
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        row = _window_start(top // p, -(-bottom // p), self.grid, side, rng)
        column = _window_start(left // p, -(-right // p), self.grid, side, rng)
        rows, columns = np.arange(row, row + side), np.arange(column, column + side)
        tokens = (rows[:, None] * self.grid + columns).reshape(-1)
        window = np.asarray(image)[row * p : (row + side) * p, column * p : (column + side) * p]
        targets = photodigits.token_targets(mask, label, self.grid)[tokens]
        pixels = torch.from_numpy(window.transpose(2, 0, 1).copy())
        return pixels, label, torch.from_numpy(targets), torch.from_numpy(tokens)


def _window_start(first: int, last: int, grid: int, side: int, rng: np.random.RandomState) -> int:
    """The start, along one axis, of a random window with as many of the tokens `first` to `last` as fit."""
    least, most = max(0, last - side), min(grid - side, first)
    if least <= most:
        return rng.randint(least, most + 1)
    return max(0, min(grid - side, (first + last - side) // 2))
