"""The recipe behind the weights for PhotoDigits: schedule, training images and initial weights.

From scratch, at full difficulty, a small ViT learns nothing here for a long time. Four things make training short enough for two
processor cores: a curriculum (large white digits on black, raised to the benchmark's difficulty); a window of a quarter of the
image around the digit for most images, at the scale and with the position embeddings that these tokens have in the whole image; a second
target on every patch token (which digit covers it, or none); and a start in which queries match keys and the value path resembles
the identity (after Trockman and Kolter, 2023, "Mimetic initialization of self-attention layers").
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from tokred.data import photodigits

WINDOW = 7  # tokens on a side of a window: the digit always fits


class Recipe(BaseModel):
    """Everything that decides the trained weights. Shares are of `images`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "deit_t"
    images: int = Field(100_000, gt=0)
    batch_size: int = Field(32, gt=0)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    cycles: int = Field(1, ge=1)  # of the learning rate: warm restarts after Loshchilov and Hutter, 2017
    warmup: float = Field(0.02, ge=0, le=1)  # share of each cycle
    curriculum: float = Field(0.2, ge=0, le=1)  # share over which the difficulty rises to the benchmark's
    whole_every: int = Field(12, ge=1)  # after the curriculum, every so many batches show whole images
    whole_last: float = Field(0.04, ge=0, le=1)  # and all batches of this last share of each cycle
    token_weight: float = Field(1.0, ge=0)  # weight of the per-token target
    clip: float = Field(1.0, gt=0)  # gradient norm
    grow_from: str | None = (
        None  # a narrower model with shipped weights, or a weight file, to widen and start from
    )
    seed: int = Field(0, ge=0, lt=2**32)

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch_size)

    def whole(self, step: int) -> bool:
        """Whether a step shows whole images instead of windows."""
        if step < self.curriculum * self.steps:
            return False
        return step % self.whole_every == 0 or self._in_cycle(step) >= 1 - self.whole_last

    def ease(self, step: int) -> float:
        """How much easier than the benchmark the images of one step are, from 1 to 0."""
        return max(0.0, 1.0 - step / (self.curriculum * self.steps)) if self.curriculum else 0.0

    def lr_scale(self, step: int) -> float:
        """In each cycle a linear warm-up, then a half cosine to zero."""
        done, first = self._in_cycle(step), self.cycles / self.steps
        if done < self.warmup:
            return (done + first) / (self.warmup + first)
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / max(first, 1 - self.warmup)))

    def _in_cycle(self, step: int) -> float:
        """How much of its learning-rate cycle is done before a step, from 0 to 1."""
        return step * self.cycles / self.steps % 1


class TrainingImages(Dataset[tuple[Tensor, int, Tensor, Tensor]]):
    """Image `i` of a run: (uint8 [3, S, S], label, token targets [N], positions of the tokens in the whole image [N])."""

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
    """Row and column of the first token of a random window that holds as much of the ink as fits."""
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


def sincos_position(grid: int, dim: int) -> Tensor:
    """Fixed two-dimensional sine-cosine position embedding, [grid * grid, dim] (as in MoCo v3)."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def initialize(model: Any, rng: torch.Generator) -> None:
    """Sine-cosine positions; query-key and value-projection products near the identity; the rest as timm draws it, from `rng`."""
    dim, grid = model.embed_dim, model.patch_embed.grid_size[0]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=rng))
            if module.bias is not None:
                module.bias.zero_()
    model.cls_token.copy_(1e-6 * torch.randn(model.cls_token.shape, generator=rng))
    model.pos_embed[:, : -grid * grid].zero_()
    model.pos_embed[:, -grid * grid :].copy_(0.1 * sincos_position(grid, dim))
    fan_in = model.patch_embed.proj.weight[0].numel()
    model.patch_embed.proj.weight.copy_(
        fan_in**-0.5 * torch.randn(model.patch_embed.proj.weight.shape, generator=rng)
    )
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        q.copy_(torch.randn(q.shape, generator=rng) * dim**-0.5)
        k.copy_(0.7 * q + 0.7 * torch.randn(k.shape, generator=rng) * dim**-0.5)
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=rng))[0]
        v.copy_(0.6 * basis + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
        block.attn.proj.weight.copy_(0.6 * basis.T + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
