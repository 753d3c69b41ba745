"""Methods whose counts depend on the image: what each image costs, and the threshold that meets a budget.

The threshold is calibrated on images that are not those of the test, and a batch of them may be of any size:
what an image costs depends on the image alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tokred.core.costs import CostTable
from tokred.core.match import Match, check_budget
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unreachable
from tokred.tables.row import TOLERANCE

_HALVINGS = 20  # of the range of thresholds
_FEW = 32  # images that the search goes over
_CORRECTIONS = 6  # passes over all images


def image_flops(costs: CostTable, plan: Plan, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs of each image, equal to a trace of the model on that image alone, and those of its reducers.

    Args:
        costs: cost table of the backbone.
        plan: the plan, of a method whose counts depend on the image.
        counts: [n, S] int, tokens that each image has after each stage.

    Returns:
        FLOPs of the model, [n] int64, and of the reducers alone, [n] int64.
    """
    total = np.full(len(counts), costs.embedding, dtype=np.int64)
    reducers = np.zeros(len(counts), dtype=np.int64)
    before = np.column_stack([np.full(len(counts), costs.n), counts])
    for place, segment in enumerate(costs.segments(plan)):
        lengths, where = np.unique(before[:, place], return_inverse=True)
        flops = [sum(costs.part(part, layer, n) for part, layer in segment) for n in lengths.tolist()]
        total += np.array(flops, dtype=np.int64)[where]
        if place < len(plan.stages):
            reducers += _stage_flops(costs, plan, plan.stages[place], lengths)[where]
    return total + reducers, reducers


def _stage_flops(costs: CostTable, plan: Plan, layer: int, lengths: np.ndarray) -> np.ndarray:
    """FLOPs of the reducer at one layer on each number of tokens, [k] int64.

    What a reducer costs must follow from the number of tokens that it looks at. It is taken for quadratic in
    that number, for even and odd ones apart; where the count at all patches contradicts, it is counted at
    each one.
    """
    flops = np.zeros(len(lengths), dtype=np.int64)
    for odd in (0, 1):
        places = np.flatnonzero(lengths % 2 == odd)
        if not len(places):
            continue
        few = [costs.stage(plan, layer, n, n) for n in (16 + odd, 18 + odd, 20 + odd)]
        slope, bend = few[1] - few[0], few[2] - 2 * few[1] + few[0]
        step = (lengths[places] - 16 - odd) // 2
        flops[places] = few[0] + slope * step + bend * (step * (step - 1) // 2)
        last = (costs.n - 16 - odd) // 2
        most, counted = 16 + odd + 2 * last, few[0] + slope * last + bend * (last * (last - 1) // 2)
        if costs.stage(plan, layer, most, most) != counted:
            flops[places] = [costs.stage(plan, layer, n, n) for n in lengths[places].tolist()]
    return flops


def set_threshold(model: ReducedViT, threshold: float) -> None:
    """Set the threshold of all reducers of a model, and note it in the model's plan."""
    for stage in model.stage_list():
        stage.reducer.threshold = threshold
    model.plan = replace(model.plan, knob=threshold)


def calibrate(model: ReducedViT, costs: CostTable, budget: float, images: Iterable[Tensor]) -> Match:
    """Set the threshold at which a model saves the fraction `budget` of the dense model's FLOPs.

    The threshold is found by bisection on the first few images, whether more of it removes more or less. What
    these are to save is then corrected by what all images save, until all save the budget in the mean. The
    match that is returned has the mean cost of all images.

    Args:
        model: a reduced model whose method has a threshold.
        costs: cost table of the backbone.
        budget: between 0 and 1.
        images: batches of prepared images [B, channels, H, W]; training images or unlabelled ones.

    Raises:
        TokredError: a budget outside (0, 1), no image, or images with numbers that are not finite.
        Unreachable: the method cannot save that much at these stages.
    """
    check_budget(budget)
    batches = [batch for batch in images if not (isinstance(batch, Tensor) and batch.numel() == 0)]
    if not batches:
        raise TokredError("There is no image to calibrate the threshold on.")
    everything = _Saved(model, costs, batches)
    few = _Saved(model, costs, [torch.cat(batches[:_FEW])[:_FEW]])  # a batch may be of any size
    ends, target, nearest = sorted((few(0.0), few(1.0))), budget, (float("inf"), 0.0)
    for _ in range(_CORRECTIONS):
        threshold = few.threshold(min(max(target, ends[0]), ends[1]))
        saved = everything(threshold)
        nearest = min(nearest, (abs(saved - budget), threshold))
        if nearest[0] <= TOLERANCE / 10:
            break
        target += budget - saved
    if everything(nearest[1]) < budget - TOLERANCE:
        most = max(everything(0.0), everything(1.0))
        if most < budget - TOLERANCE:
            raise Unreachable(
                f"{model.plan.reducer.name} at layers {' '.join(map(str, model.plan.stages))} can save at "
                f"most {most:.1%} of this model's FLOPs on these images, not {budget:.1%}; lower the budget, "
                "or set more or earlier layers with --stages."
            )
    set_threshold(model, nearest[1])
    counts = everything.counts[nearest[1]]
    flops, reducers = (round(part.mean()) for part in image_flops(costs, model.plan, counts))
    return Match(model.plan, flops, reducers, costs.dense, budget, costs.n)


class _Saved:
    """The mean fraction of FLOPs that some images save, by the threshold.

    Args:
        model: a reduced model, whose threshold changes.
        costs: cost table of the backbone.
        batches: the images, at least one.
    """

    @torch.inference_mode()
    def __init__(self, model: ReducedViT, costs: CostTable, batches: Iterable[Tensor]) -> None:
        self.model, self.costs = model, costs
        self.starts = [model.advance(model.embed(batch), stop=model.first_point) for batch in batches]
        if not all(start.x.isfinite().all() for start in self.starts):
            raise TokredError(
                "The images to calibrate on, or the model's weights, hold numbers that are not finite."
            )
        self.counts: dict[float, np.ndarray] = {}
        """Tokens of each image after each stage, [n, S], at the thresholds that were tried."""

    @torch.inference_mode()
    def __call__(self, threshold: float) -> float:
        set_threshold(self.model, threshold)
        if threshold not in self.counts:
            counts = [self.model.advance(start).counts.cpu().numpy() for start in self.starts]
            self.counts[threshold] = np.concatenate(counts)
        flops, _ = image_flops(self.costs, self.model.plan, self.counts[threshold])
        return 1 - float(flops.mean()) / self.costs.dense

    def threshold(self, target: float) -> float:
        """The threshold at which the images save the fraction `target`, by bisection between 0 and 1."""
        least, most = (0.0, 1.0) if self(0.0) <= self(1.0) else (1.0, 0.0)
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            if abs(self(middle) - target) <= TOLERANCE / 10:
                return middle
            least, most = (middle, most) if self(middle) < target else (least, middle)
        return min(least, most, key=lambda end: abs(self(end) - target))
