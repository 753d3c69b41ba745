"""The recipe of a fit: its length, optimiser, loss and augmentation."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokred import configs
from tokred.errors import TokredError
from tokred.utils import numbers

Decay = Annotated[float, Field(ge=0, lt=1)]


class FitRecipe(BaseModel):
    """Length, optimiser, loss and augmentation of a fit. Shares are fractions of all steps.

    The loss is the sum of cross-entropy with the labels (`label_weight`), KL divergence from the dense model
    (`logits_weight`), squared distance to its final tokens in units of their variance (`tokens_weight`),
    and the method's own penalty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    full: bool = False  # train all weights, not only the reducers'
    images: int | None = Field(None, gt=0)  # length in images; either this
    epochs: float | None = Field(None, gt=0)  # or the length in passes over the training images
    batch_size: int = Field(16, gt=0, le=numbers.MOST_IMAGES_TOGETHER)
    lr: float = Field(3e-3, gt=0)
    backbone_lr: float = Field(1.0, gt=0)  # learning rate of the backbone in a full fit, as a share of lr
    min_lr: float = Field(0.0, ge=0)
    warmup: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    clip: float | None = Field(1.0, gt=0)  # gradient norm
    ema: float | None = Field(None, gt=0, lt=1)  # decay of a running mean of the weights, also validated
    label_weight: float = Field(1.0, ge=0)
    logits_weight: float = Field(1.0, ge=0)
    tokens_weight: float = Field(1.0, ge=0)
    smoothing: float = Field(0.0, ge=0, lt=1)
    calibrate: bool = True  # initialise the reducers by the model's tokens, if the method supports it
    drop_path: float = Field(0.0, ge=0, lt=1)
    flip: float = Field(0.0, ge=0, le=1)  # probability; this and the next four never apply to PhotoDigits
    crop_scale: float = Field(1.0, gt=0, le=1)  # least area of a random crop
    color_jitter: float = Field(0.0, ge=0)
    auto_augment: str | None = None
    erase: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    evaluations: int = Field(4, gt=0)  # validations in a fit
    patience: int = Field(2, gt=0)  # validations without a lower loss after which the fit stops
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_length(self) -> FitRecipe:
        if (self.images is None) == (self.epochs is None):
            raise ValueError("give either images or epochs")
        if self.min_lr > self.lr:
            raise ValueError("min_lr is above lr")
        return self

    def steps(self, n: int | None) -> int:
        """The number of optimiser steps over `n` training images; None for endless ones."""
        if self.images is None:
            assert n is not None
            assert self.epochs is not None
            return max(1, round(self.epochs * n / self.batch_size))
        return max(1, round(self.images / self.batch_size))

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step: a linear warm-up, then a half cosine to `min_lr`."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        rest = (step - warmup) / max(1, steps - warmup)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * rest))


def load_recipe(
    name: str | None = None, full: bool = False, images: int | None = None, seed: int | None = None
) -> FitRecipe:
    """Load a recipe, by default the short one of its kind, with another length or seed if given.

    Raises:
        TokredError: there is no such recipe, a value in it is invalid, or `full` is set for a recipe that
            trains only the reducers.
    """
    recipe_name = name or ("full" if full else "reducer")
    values = configs.load("fit", recipe_name)
    if full and not values.get("full"):
        raise TokredError(
            f"The recipe {recipe_name} trains only the reducers; leave out --full, or give a recipe that has "
            "full: true."
        )
    if images is not None:
        values = {**{key: value for key, value in values.items() if key != "epochs"}, "images": images}
    if seed is not None:
        values["seed"] = seed
    return configs.parse(FitRecipe, values, recipe_name)
