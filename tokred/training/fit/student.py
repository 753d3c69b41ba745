"""A reduced model in training, and its losses against the labels and the dense model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor
from torch.nn import functional as F

from tokred.core.backbone import num_patches
from tokred.core.plan import Plan, uniform_counts
from tokred.core.reduction import compose_labels, unmerge
from tokred.core.rng import seeded
from tokred.core.stage import State
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.training.fit.recipe import FitRecipe

# The range of keep rates in a fit for any budget; methods whose knob is a number of tokens draw as many.
RATES = (0.4, 1.0)


@dataclass(frozen=True)
class Lesson:
    """The dense model's outputs on a batch.

    Attributes:
        start: the state from which the student starts.
        tokens: normalised final tokens, [B, P + N, C].
        logits: logits, [B, classes].
    """

    start: State
    tokens: Tensor
    logits: Tensor


class Student:
    """A reduced model and the dense model that teaches it.

    Args:
        backbone: the dense model. It is frozen; a full fit trains a copy of it.
        plan: the plan that is validated and, unless `any_budget`, trained.
        recipe: the recipe, with the weights of the loss and whether all weights are trained.
        any_budget: whether to draw token counts at every step, so that the first rows of nested parameters
            serve every count.

    Raises:
        TokredError: the method has no parameters to train.
    """

    def __init__(self, backbone: Any, plan: Plan, recipe: FitRecipe, any_budget: bool) -> None:
        self.plan, self.recipe, self.any_budget = plan, recipe, any_budget
        self.capacity = _capacity(num_patches(backbone), len(plan.stages)) if any_budget else plan.tokens
        own = _trainable_copy(backbone, recipe.drop_path) if recipe.full else backbone
        backbone.requires_grad_(False)
        self.model = ReducedViT(own, replace(plan, tokens=self.capacity), seed=recipe.seed)
        for stage in self.model.stage_list():
            stage.reducer.any_budget = any_budget
        if not (recipe.full or self.model.learned):
            name = plan.reducer.name
            raise TokredError(
                f"{name} has no parameters of its own to fit with these options; "
                "fit the whole model with --full."
            )
        shared = () if recipe.full else self.model.recorded_before_first
        self.teacher = ReducedViT(backbone, record=shared)

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters, by their names in adapters."""
        parts = {"backbone": self.model.backbone, "stages": self.model.stages}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into all parameters."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(tensors[name])

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold other parameter values inside the `with` statement."""
        before = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}
        self.load(tensors)
        try:
            yield
        finally:
            self.load(before)

    def train(self, step: int) -> None:
        """Prepare for one training step."""
        self.model.train(self.recipe.full)
        self.model.stages.train()
        self.model.retarget(self._draw_counts(step))

    @torch.no_grad()
    def teach(self, images: Tensor, keys: Tensor) -> Lesson:
        """Run the dense model on images [B, 3, H, W]; random numbers depend on `keys`, [B]."""
        state = self.teacher.embed(images, keys)
        start = state if self.recipe.full else self.teacher.advance(state, stop=self.model.first_point)
        end = self.teacher.advance(start)
        return Lesson(start, self.teacher.backbone.norm(end.x), self.teacher.logits(end))

    def loss(self, images: Tensor, lesson: Lesson, targets: Tensor | None) -> dict[str, Tensor]:
        """Parts of the loss, each a mean over images, and their weighted sum as "loss".

        Args:
            images: images, [B, 3, H, W]; only a full fit uses them.
            lesson: the dense model's outputs on the same images.
            targets: classes, [B], or their probabilities, [B, classes]; None without labels.
        """
        start = self.model.embed(images, lesson.start.images) if self.recipe.full else lesson.start
        state = self.model.advance(start)
        logits = self.model.logits(state).float()
        zero, recipe = logits.new_zeros(()), self.recipe
        parts = {
            "label": zero if targets is None else _cross_entropy(logits, targets, recipe.smoothing),
            "logits": _divergence(logits, lesson.logits) if recipe.logits_weight else zero,
            "tokens": self._token_distance(state, lesson.tokens) if recipe.tokens_weight else zero,
            "method": self._penalty(state),
        }
        weights = {
            "label": recipe.label_weight,
            "logits": recipe.logits_weight,
            "tokens": recipe.tokens_weight,
            "method": 1.0,
        }
        return {"loss": sum((weights[name] * part for name, part in parts.items()), zero), **parts}

    def _penalty(self, state: State) -> Tensor:
        """The method's own penalty, the mean over stages."""
        active = [stage for stage in self.model.stage_list() if stage.reducer.keep < stage.reducer.n]
        pairs = zip(active, state.reductions, strict=True)
        penalties = [stage.reducer.penalty(reduction).to(state.x.device) for stage, reduction in pairs]
        return torch.stack(penalties).mean()

    def _token_distance(self, state: State, target: Tensor) -> Tensor:
        """Mean squared distance of the final tokens to the teacher's, relative to their variance per image.

        For each patch, the token that contains it is compared; dropped patches do not count.
        """
        prefix = self.model.num_prefix
        tokens, target = self.model.backbone.norm(state.x).float(), target.float()
        patches = unmerge(state.reductions, tokens[:, prefix:])
        held = (compose_labels(state.reductions) >= 0).float()  # [B, N]
        distance = (patches - target[:, prefix:]).square().mean(-1)
        distance = (distance * held).sum(1) / held.sum(1).clamp(min=1)
        if prefix:
            distance = distance + (tokens[:, :prefix] - target[:, :prefix]).square().mean((1, 2))
        return (distance / target.var((1, 2))).mean()

    def _draw_counts(self, step: int) -> tuple[int, ...]:
        """The number of tokens after each stage at one step."""
        if not self.any_budget:
            return self.plan.tokens
        n, stages, cls = num_patches(self.model.backbone), len(self.capacity), self.plan.reducer
        rate = np.random.RandomState([self.recipe.seed, step]).uniform(*RATES)
        knob = rate if cls.knob == "rate" else (1 - rate) * n / stages
        return tuple(map(min, uniform_counts(cls, n, stages, knob), self.capacity))

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Let every reducer initialise its parameters by the tokens at its stage."""
        self.model.eval()
        keys = torch.arange(len(images), device=images.device)
        state = self.model.embed(images, keys)
        with seeded(self.recipe.seed):
            for stage in self.model.stage_list():
                state = self.model.advance(state, stop=(stage.layer, stage.reducer.site))
                stage.reducer.calibrate(stage.view(state))

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor | None, logits: Tensor) -> tuple[float, int]:
        """Sum of losses, weighted as in training, and number of right predictions on a batch, by the plan.

        Without labels the loss is the KL divergence alone, and predictions are right if the teacher agrees.
        """
        self.model.eval()
        self.model.retarget(self.plan.tokens)
        student_logits = self.model(images).float()
        loss = _divergence(student_logits, logits) * len(student_logits)
        if labels is not None:
            wrong = F.cross_entropy(student_logits, labels, reduction="sum")
            loss = self.recipe.logits_weight * loss + self.recipe.label_weight * wrong
        aim = logits.argmax(1) if labels is None else labels
        return float(loss), int((student_logits.argmax(1) == aim).sum())


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy; targets that are probabilities come from mixed images and are already smoothed."""
    return F.cross_entropy(logits, targets, label_smoothing=0.0 if targets.is_floating_point() else smoothing)


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL divergence from the teacher's distribution."""
    log, target = logits.float().log_softmax(1), teacher.float().log_softmax(1)
    return F.kl_div(log, target, log_target=True, reduction="batchmean")


def _capacity(n: int, stages: int) -> tuple[int, ...]:
    """The most tokens that any plan keeps at each stage: every stage removes at least one."""
    return tuple(n - 1 - stage for stage in range(stages))


def _trainable_copy(backbone: Any, drop_path: float) -> Any:
    model = copy.deepcopy(backbone)
    model.requires_grad_(True)
    last = max(1, len(model.blocks) - 1)
    for index, block in enumerate(model.blocks):
        if drop_path:
            block.drop_path1 = DropPath(drop_path * index / last)
            block.drop_path2 = DropPath(drop_path * index / last)
    return model
