"""The recipe of the shipped weights for PhotoDigits.

From scratch and at full difficulty a small ViT learns nothing here for a long time. Four measures make
training short enough for two processor cores: a curriculum (from large white digits on black to the
difficulty of the benchmark); a window of a quarter of the image around the digit for most images, at the
scale and with the position embeddings that these tokens have in the whole image; a second target for every
patch token (which digit covers it, or none); and initial weights with which queries match keys and the value
path resembles the identity (after Trockman and Kolter, 2023, "Mimetic initialization of self-attention
layers").
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from tokred.utils import numbers


class Recipe(BaseModel):
    """Everything that determines the trained weights. Shares are fractions of `images`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = "deit_t"
    images: int = Field(100_000, gt=0)
    batch_size: int = Field(32, gt=0, le=numbers.MOST_IMAGES_TOGETHER)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    cycles: int = Field(1, ge=1)  # learning-rate cycles: warm restarts after Loshchilov and Hutter, 2017
    warmup: float = Field(0.02, ge=0, le=1)  # share of each cycle
    curriculum: float = Field(0.2, ge=0, le=1)  # share over which the difficulty rises to the benchmark's
    whole_every: int = Field(12, ge=1)  # after the curriculum, one in so many batches has whole images
    whole_last: float = Field(0.04, ge=0, le=1)  # and so have all batches in this last share of each cycle
    token_weight: float = Field(1.0, ge=0)  # weight of the per-token target
    clip: float = Field(1.0, gt=0)  # gradient norm
    grow_from: str | None = None  # a narrower model with shipped weights, or a weight file, to start from
    residual_scale: float = Field(0.125, gt=0)  # factor on the residual stream of the written weights
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
        """How much easier than the benchmark the images of a step are, from 1 to 0."""
        return max(0.0, 1.0 - step / (self.curriculum * self.steps)) if self.curriculum else 0.0

    def lr_scale(self, step: int) -> float:
        """The scale of the learning rate: in each cycle a linear warm-up, then a half cosine to zero."""
        done, first = self._in_cycle(step), self.cycles / self.steps
        if done < self.warmup:
            return (done + first) / (self.warmup + first)
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / max(first, 1 - self.warmup)))

    def _in_cycle(self, step: int) -> float:
        """The fraction of the learning-rate cycle that is done before a step."""
        return step * self.cycles / self.steps % 1
