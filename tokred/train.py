"""Train a backbone on PhotoDigits: the recipe behind the shipped weights.

From scratch, at full difficulty, a small ViT learns nothing here for a long time. Four things make training short enough for two
processor cores: a curriculum (large, centred, white digits on black, raised to the benchmark's difficulty), most images at half
resolution, a second target on every patch token (which digit covers it, or none), and a start in which queries match keys and the
value path resembles the identity (after Trockman and Kolter, 2023, "Mimetic initialization of self-attention layers").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tokred.data import photodigits


class Recipe(BaseModel):
    """Everything that decides the trained weights. Shares are of `images`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "deit_t"
    images: int = Field(128_000, gt=0)
    batch_size: int = Field(64, gt=0)
    optimizer: str = "adamw"
    lr: float = Field(2.5e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.02, ge=0, le=1)
    low_res: float = Field(0.75, ge=0, le=1)  # share of images seen at half resolution, first
    curriculum: float = Field(0.4, ge=0, le=1)  # share of images over which the difficulty rises to the benchmark's
    token_weight: float = Field(1.0, ge=0)  # weight of the per-token target
    grow_from: str | None = None  # a narrower trained model, widened without changing its function
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch_size)

    def size(self, step: int) -> int:
        """Side of the images of one step, in pixels."""
        return photodigits.SIZE // 2 if step < round(self.low_res * self.steps) else photodigits.SIZE

    def ease(self, step: int) -> float:
        """How much easier than the benchmark the images of one step are, from 1 to 0."""
        return max(0.0, 1.0 - step / (self.curriculum * self.steps)) if self.curriculum else 0.0

    def lr_scale(self, step: int) -> float:
        """Linear warm-up, then a half cosine to zero."""
        warm = self.warmup * self.steps
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, self.steps - warm)))


class TrainingImages(Dataset[tuple[Tensor, int, Tensor]]):
    """Image `i` of the run, as the recipe wants it at that point: (uint8 [3, S, S], label, token targets [S / 16 squared])."""

    def __init__(self, recipe: Recipe, patch: int) -> None:
        self.recipe, self.patch = recipe, patch

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        step = index // self.recipe.batch_size
        size = self.recipe.size(step)
        image, mask, label, _ = photodigits.render("train", self.recipe.seed, index, size, self.recipe.ease(step))
        targets = photodigits.token_targets(mask, label, size // self.patch)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()), label, torch.from_numpy(targets)


def sincos_position(grid: int, dim: int) -> Tensor:
    """Fixed two-dimensional sine-cosine position embedding, [grid * grid, dim] (as in MoCo v3)."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def initialize(model: Any, rng: torch.Generator) -> None:
    """Sine-cosine positions; query-key and value-projection products near the identity."""
    dim, grid = model.embed_dim, model.patch_embed.grid_size[0]
    model.pos_embed[:, -grid * grid :].copy_(0.1 * sincos_position(grid, dim))
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        q.copy_(torch.randn(q.shape, generator=rng) * dim**-0.5)
        k.copy_(0.7 * q + 0.7 * torch.randn(k.shape, generator=rng) * dim**-0.5)
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=rng))[0]
        v.copy_(0.6 * basis + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
        block.attn.proj.weight.copy_(0.6 * basis.T + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
