"""Controls: dense models that a method must beat to be useful.

`lowres` runs the same weights on smaller images, whose fewer patches save the budget; `smaller` is the next
smaller model of the family if its weights are available. The third control, `random`, is a registered
method.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor
from torch.nn import functional as F

from tokred.core.costs import CostTable
from tokred.core.plan import Plan
from tokred.core.stage import State
from tokred.core.vit import ReducedViT
from tokred.data import preprocessing
from tokred.errors import TokredError, Unreachable
from tokred.models import zoo
from tokred.models.zoo import Loaded

LOWRES, SMALLER = "lowres", "smaller"
_SIZES = ("tiny", "small", "base", "large", "huge", "giant", "gigantic")


@dataclass(frozen=True)
class Control:
    """A dense model and its cost.

    Attributes:
        model: the model, with the empty plan and its own backbone.
        flops: multiply-accumulates of one image, without resizing.
        patches: number of patch tokens.
        options: facts that distinguish it from other controls of its name.
    """

    model: ReducedViT
    flops: int
    patches: int
    options: dict[str, str]


class LowRes(ReducedViT):
    """The dense model on images of fewer patches, which it resizes itself (bicubic with antialiasing)."""

    def embed(self, x: Tensor, images: Tensor | None = None) -> State:
        smaller = F.interpolate(x, self.backbone.patch_embed.img_size, mode="bicubic", antialias=True)
        return super().embed(smaller, images)


def lowres(costs: CostTable, budget: float) -> Control:
    """The dense model at the highest resolution that saves the budget, with nearly the same aspect ratio.

    The positional embedding is resampled, as in timm for another image size. Since the grid has whole rows
    and columns of patches, up to 6 % more than the budget is saved at 14 x 14.

    Raises:
        Unreachable: even the smallest grid saves less than the budget.
    """
    target = (1 - budget) * costs.dense
    for grid in sorted(_grids(costs), key=math.prod, reverse=True):
        if _estimate(costs, math.prod(grid)) > 1.01 * target:
            continue
        model = LowRes(_resized(costs.backbone, grid))
        flops = CostTable(model.backbone).dense
        if flops <= target:
            height, width = model.backbone.patch_embed.img_size
            return Control(model, flops, math.prod(grid), {"size": f"{height}x{width}"})
    raise Unreachable(f"{LOWRES} cannot save {budget:.1%} of this model's FLOPs; lower the budget.")


def smaller(loaded: Loaded, img_size: int | None = None) -> Control | None:
    """The next smaller model of a family, with the same classes and weights of the same origin, or None.

    Args:
        loaded: the model to compare. Weights from a file have no smaller counterpart.
        img_size: side of the images in pixels; by default the model's own.

    Without a classifier there is none: features of other widths cannot be compared.
    """
    for name in _smaller_models(loaded.name) if loaded.origin and loaded.model.num_classes else ():
        try:
            other = zoo.load_for(name, None, loaded.origin or "pretrained", img_size)
        except TokredError:
            continue
        same = preprocessing.data_config(other.model) == preprocessing.data_config(loaded.model)
        if same and other.model.num_classes == loaded.model.num_classes:
            costs = CostTable(other.model)
            options = {"model": name, "weights": other.weights_hash[:8]}
            return Control(ReducedViT(other.model), costs.dense, costs.n, options)
    return None


def _grids(costs: CostTable) -> list[tuple[int, int]]:
    """Grids smaller than the model's, of the same shape to within one row or column."""
    rows, columns = costs.backbone.patch_embed.grid_size
    grids = ((height, width) for height in range(1, rows + 1) for width in range(1, columns + 1))
    near = ((h, w) for h, w in grids if abs(w * rows - h * columns) <= max(rows, columns))
    return [grid for grid in near if grid != (rows, columns)]


def _estimate(costs: CostTable, patches: int) -> float:
    (parts,) = costs.segments(Plan())
    total = sum(costs.part(part, layer, patches) for part, layer in parts)
    return costs.embedding * patches / costs.n + total


def _resized(backbone: Any, grid: tuple[int, int]) -> Any:
    """The backbone for images of another size, which shares all parameters but the positional embedding."""
    position = backbone.pos_embed
    tensors = (*backbone.parameters(), *backbone.buffers())
    shared = {id(tensor): tensor for tensor in tensors if tensor is not position}
    model = copy.deepcopy(backbone, shared)
    patch = backbone.patch_embed.patch_size
    model.set_input_size(img_size=(grid[0] * patch[0], grid[1] * patch[1]))
    return model.eval()


def _smaller_models(name: str) -> list[str]:
    """Smaller models of the family, the largest first, by their aliases if they have one."""
    resolved, _, tag = zoo.timm_name(name).partition(".")
    words = resolved.split("_")
    place = next((i for i, word in enumerate(words) if word in _SIZES), None)
    if place is None:
        return []
    below = reversed(_SIZES[: _SIZES.index(words[place])])
    names = ["_".join([*words[:place], size, *words[place + 1 :]]) for size in below]
    aliases = {full: alias for alias, full in zoo.ALIASES.items()}
    known = [name for name in names if timm.is_model(name)]
    return [f"{smaller}.{tag}" if tag else aliases.get(smaller, smaller) for smaller in known]
