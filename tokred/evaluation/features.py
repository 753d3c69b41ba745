"""Features of a model without a classifier, and their distance from the dense model's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.core.reduction import unmerge
from tokred.core.stage import State
from tokred.core.vit import ReducedViT


class Features(NamedTuple):
    """What a model says of the images of a batch.

    Attributes:
        pooled: [B, D] float32, what would enter a classifier.
        patches: [B, D, rows, columns] float32, of every patch of the image.
    """

    pooled: Tensor
    patches: Tensor


def features_of(model: ReducedViT, state: State, pooled: Tensor) -> Features:
    """The features of a state after the last layer.

    Each patch has the normalised token that holds it; zeros where that was dropped.

    Args:
        model: the model.
        state: the state.
        pooled: [B, D] the output of the model.
    """
    tokens = model.backbone.norm(state.x)[:, model.num_prefix :]
    patches = unmerge(state.reductions, tokens).float()
    return Features(pooled.float(), patches.mT.unflatten(-1, tuple(model.backbone.patch_embed.grid_size)))


def distances(own: Features, dense: Features) -> dict[str, np.ndarray]:
    """The optional arrays of `Predictions` that compare features, for the images of a batch.

    Patches of a model with smaller images are interpolated to the grid of the dense model.
    """
    patches = own.patches
    if patches.shape != dense.patches.shape:
        patches = F.interpolate(patches, dense.patches.shape[-2:], mode="bilinear")
    values = {
        "features": F.normalize(own.pooled).half(),
        "cosine": F.cosine_similarity(own.pooled, dense.pooled),
        "error": _relative_error(own.pooled, dense.pooled),
        "patch_cosine": F.cosine_similarity(patches, dense.patches).mean((1, 2)),
        "patch_error": _relative_error(patches, dense.patches),
    }
    return {name: value.cpu().numpy() for name, value in values.items()}


def _relative_error(own: Tensor, dense: Tensor) -> Tensor:
    """The norm of the difference over that of the dense features, for each image, [B]."""
    error, norm = (torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (own - dense, dense))
    return error / norm.clamp(min=torch.finfo(norm.dtype).tiny)
