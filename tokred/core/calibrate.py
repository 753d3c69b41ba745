"""Methods whose counts depend on the image: what each image costs, and the threshold that meets a budget.

The threshold is calibrated on images that are not those of the test, and a batch of them may be of any size:
what an image costs depends on the image alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tokred.core.costs import CostTable
from tokred.core.match import Match, check_budget
from tokred.core.plan import Plan
from tokred.core.stage import State
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unreachable
from tokred.tables.row import TOLERANCE

_STEPS = 24  # values of the threshold that are tried


def image_flops(costs: CostTable, plan: Plan, counts: np.ndarray) -> np.ndarray:
    """FLOPs of each image, [n] int64, equal to a trace of the model on that image alone.

    Args:
        costs: cost table of the backbone.
        plan: the plan, of a method whose counts depend on the image.
        counts: [n, S] int, tokens that each image has after each stage.
    """
    total = np.full(len(counts), costs.embedding, dtype=np.int64)
    before = np.column_stack([np.full(len(counts), costs.n), counts])
    for place, segment in enumerate(costs.segments(plan)):
        lengths, where = np.unique(before[:, place], return_inverse=True)
        flops = [sum(costs.part(part, layer, n) for part, layer in segment) for n in lengths.tolist()]
        total += np.array(flops, dtype=np.int64)[where]
    return total + reducer_flops(costs, plan, counts)


def reducer_flops(costs: CostTable, plan: Plan, counts: np.ndarray) -> np.ndarray:
    """FLOPs of the reducers alone, [n] int64; arguments as for `image_flops`.

    What a reducer costs must follow from the number of tokens that it looks at. It is taken for quadratic in
    that number, for even and odd ones apart, and counted at each number where the largest one contradicts.
    """
    total = np.zeros(len(counts), dtype=np.int64)
    before = np.column_stack([np.full(len(counts), costs.n), counts])
    for place, layer in enumerate(plan.stages):
        lengths, where = np.unique(before[:, place], return_inverse=True)
        total += _stage_flops(costs, plan, layer, lengths)[where]
    return total


def _stage_flops(costs: CostTable, plan: Plan, layer: int, lengths: np.ndarray) -> np.ndarray:
    """FLOPs of the reducer at one layer on each number of tokens, [k] int64."""
    flops = np.zeros(len(lengths), dtype=np.int64)
    for odd in (0, 1):
        places = np.flatnonzero(lengths % 2 == odd)
        if not len(places):
            continue
        few = [costs.stage(plan, layer, n, n) for n in (16 + odd, 18 + odd, 20 + odd)]
        slope, bend = few[1] - few[0], few[2] - 2 * few[1] + few[0]
        step = (lengths[places] - 16 - odd) // 2
        flops[places] = few[0] + slope * step + bend * (step * (step - 1) // 2)
        last = int(lengths[places[-1]])
        if costs.stage(plan, layer, last, last) != flops[places[-1]]:
            flops[places] = [costs.stage(plan, layer, n, n) for n in lengths[places].tolist()]
    return flops


def set_threshold(model: ReducedViT, threshold: float) -> None:
    """Set the threshold of all reducers of a model, and note it in the model's plan."""
    for stage in model.stage_list():
        stage.reducer.threshold = threshold
    model.plan = replace(model.plan, knob=threshold)


def calibrate(model: ReducedViT, costs: CostTable, budget: float, images: Iterable[Tensor]) -> Match:
    """Set the threshold at which a model saves the fraction `budget` of the dense model's FLOPs.

    The threshold is found by bisection, whether more of it removes more or less. The match that is returned
    has the mean cost of these images.

    Args:
        model: a reduced model whose method has a threshold.
        costs: cost table of the backbone.
        budget: between 0 and 1.
        images: batches of prepared images [B, channels, H, W]; training images or unlabelled ones.

    Raises:
        TokredError: a budget outside (0, 1), or no image.
        Unreachable: the method cannot save that much at these stages.
    """
    check_budget(budget)
    with torch.inference_mode():
        starts = [model.advance(model.embed(batch), stop=model.first_point) for batch in images]
    if not starts:
        raise TokredError("There is no image to calibrate the threshold on.")

    def tried(threshold: float) -> tuple[float, float]:
        set_threshold(model, threshold)
        flops = image_flops(costs, model.plan, _counts(model, starts)).mean()
        return 1 - float(flops) / costs.dense, threshold

    (_, least), (highest, most) = ends = sorted((tried(0.0), tried(1.0)))
    if highest < budget - TOLERANCE:
        raise Unreachable(
            f"{model.plan.reducer.name} at layers {' '.join(map(str, model.plan.stages))} can save at most "
            f"{highest:.1%} of this model's FLOPs on these images, not {budget:.1%}; lower the budget, or "
            "set more or earlier layers with --stages."
        )
    nearest = min(ends, key=lambda end: abs(end[0] - budget))
    for _ in range(_STEPS):
        if abs(nearest[0] - budget) <= TOLERANCE / 10:
            break
        saved, middle = tried((least + most) / 2)
        least, most = (middle, most) if saved < budget else (least, middle)
        nearest = min(nearest, (saved, middle), key=lambda end: abs(end[0] - budget))
    set_threshold(model, nearest[1])
    counts = _counts(model, starts)
    flops, reducers = (round(part(costs, model.plan, counts).mean()) for part in (image_flops, reducer_flops))
    return Match(model.plan, flops, reducers, costs.dense, budget, costs.n)


@torch.inference_mode()
def _counts(model: ReducedViT, starts: Sequence[State]) -> np.ndarray:
    """Tokens of all images after each stage, [n, S], from the states before the first one."""
    return np.concatenate([model.advance(start).counts.cpu().numpy() for start in starts])
