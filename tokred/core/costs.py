"""What plans cost, without assembling their models: exact counts of the parts, cheap enough to search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokred.core import stored_counts
from tokred.core.backbone import (
    attend,
    blank_image,
    check_supported,
    classify,
    embed,
    has_cls,
    mlp,
    num_heads,
    num_patches,
)
from tokred.core.flops import analyse
from tokred.core.plan import Plan
from tokred.core.reducer import Attention
from tokred.core.rules import broken_rule
from tokred.core.stage import State, build_stage
from tokred.errors import TokredError


class CostTable:
    """Costs of plans on one backbone without assembling them: exact, and cheap enough to search.

    Every part of a backbone is at most quadratic in its tokens. The polynomials are found from fvcore's
    counts of the real modules at three small lengths; a reducer is counted at the very pair of token counts
    that a plan asks for. Counts of tokred's own methods are shared by all tables, see `stored_counts`.
    """

    def __init__(self, backbone: Any) -> None:
        check_supported(backbone)
        self.backbone = backbone
        self.n, self.depth = num_patches(backbone), len(backbone.blocks)
        self.num_prefix = backbone.num_prefix_tokens
        self._differences: dict[str, list[int]] = {}
        self._stages: dict[tuple[Any, ...], int] = {}
        self._quadratics: dict[tuple[Any, ...], np.ndarray] = {}

    @cached_property
    def dense(self) -> int:
        """FLOPs of the dense model."""
        return self.plan(Plan())

    @cached_property
    def embedding(self) -> int:
        """FLOPs of what comes before layer 1."""
        return _count(self.backbone, lambda image: embed(self.backbone, image)[0], blank_image(self.backbone))

    @cached_property
    def _layers(self) -> list[str]:
        """The layers as they print: those that print alike cost alike."""
        return [str(block) for block in self.backbone.blocks]

    def stage(self, plan: Plan, layer: int, n: int, keep: int) -> int:
        """FLOPs of the reducer of a plan at one layer, from n to keep tokens."""
        if keep == n and not plan.reducer.adaptive():
            return 0
        key = (plan.reducer, repr(plan.options), n, keep, layer == 1)
        if key not in self._stages:
            self._stages[key] = self._stored(plan, layer, n, keep)
        return self._stages[key]

    def _stored(self, plan: Plan, layer: int, n: int, keep: int) -> int:
        """The count of a stage, from earlier calls where it is known."""
        if not stored_counts.are_kept(plan.reducer):
            return self._counted(plan, layer, n, keep)
        stored, head_dim = stored_counts.shared(), self.backbone.blocks[layer - 1].attn.head_dim
        stage = f"{plan.reducer.name} {dict(plan.options)} {n} {keep} {head_dim} {layer == 1}"
        count = stored.get(self._geometry, stage)
        if count is None:
            count = self._counted(plan, layer, n, keep)
            stored.put(self._geometry, stage, count)
        return count

    @cached_property
    def _geometry(self) -> str:
        """What the count of a reducer depends on of the backbone, beside the tokens and the layer."""
        weight = self.backbone.patch_embed.proj.weight
        heads, prefix, cls = num_heads(self.backbone), self.num_prefix, has_cls(self.backbone)
        grid = self.backbone.patch_embed.grid_size
        sizes = f"{self.backbone.embed_dim} {heads} {prefix} {cls} {self.depth} {grid}"
        return f"{sizes} {weight.dtype} {weight.device.type}"

    @torch.no_grad()
    def _counted(self, plan: Plan, layer: int, n: int, keep: int) -> int:
        stage, p = build_stage(self.backbone, plan, layer, n, keep), self.num_prefix
        head_dim = self.backbone.blocks[layer - 1].attn.head_dim
        qkv = self._like(1, num_heads(self.backbone), p + n, head_dim)
        before_all = layer == 1 and stage.reducer.site == "pre"
        attention = None if before_all else Attention(qkv, qkv, qkv, 1.0)
        state = State(self._like(1, p + n, self.backbone.embed_dim), layer, stage.reducer.site, attention)
        try:
            return _count(stage, lambda x: stage(replace(state, x=x)).x, state.x)
        except TokredError:
            raise
        except Exception as error:  # a decision that breaks a rule can fail anywhere
            reducer = stage.reducer
            decision = reducer(stage.view(state))
            rule = broken_rule(decision, 1, n, None if reducer.adaptive() else keep)
            if rule:
                raise TokredError(f"{plan.reducer.name} has no plan: {rule}") from error
            raise

    def reducer_estimate(self, plan: Plan, n: int, keep: int) -> float:
        """What a stage from n to keep tokens costs by a polynomial fitted to small counts.

        Exact for a reducer whose cost is quadratic in its two token counts, for even and odd n apart, which
        all of tokred's are; a guide to the search, never a result.
        """
        if keep == n:
            return 0.0
        key = (plan.method, repr(plan.options), n % 2, plan.stages[0] == 1)
        if key not in self._quadratics:
            lengths = [16 + n % 2 + 2 * i for i in range(3)]
            few = lengths[-1] > self.n or any(plan.reducer.floor(m) + 3 > m for m in lengths)
            if few:  # too few counts for a polynomial, or more tokens than the model has
                return float(self.stage(plan, plan.stages[0], n, keep))
            points = [
                (length, max(plan.reducer.floor(length), 12) + j)
                for i, length in enumerate(lengths)
                for j in range(3 - i)
            ]
            design = np.array([_monomials(*point) for point in points], dtype=float)
            even, first = self._quadratics.get((*key[:2], 0, key[3])), plan.stages[0]
            if even is not None and abs(np.dot(design[0], even) - self.stage(plan, first, *points[0])) < 1:
                self._quadratics[key] = even  # the cost does not ask whether n is odd
            else:
                counts = [self.stage(plan, first, *point) for point in points]
                self._quadratics[key] = np.linalg.solve(design, np.array(counts, dtype=float))
        return float(np.dot(_monomials(n, keep), self._quadratics[key]))

    def segments(self, plan: Plan) -> list[list[tuple[str, int]]]:
        """The parts of the backbone between two stages, as (part, layer); they run at one token count."""
        site = plan.reducer.site if plan.stages else "mid"
        split_before = {("attend" if site == "pre" else "mlp", layer) for layer in plan.stages}
        segments: list[list[tuple[str, int]]] = [[]]
        for part in [(part, layer) for layer in range(1, self.depth + 1) for part in ("attend", "mlp")]:
            if part in split_before:
                segments.append([])
            segments[-1].append(part)
        segments[-1].append(("head", self.depth))
        return segments

    def part(self, part: str, layer: int, n: int) -> int:
        """FLOPs of "attend" or "mlp" of a layer, or of the "head", on n patch tokens."""
        key = f"{part} {self._layers[layer - 1]}"
        if key not in self._differences:
            self._differences[key] = self._fit(part, layer)
        return sum(comb(n - 1, power) * difference for power, difference in enumerate(self._differences[key]))

    def reducers(self, plan: Plan) -> int:
        """FLOPs of a plan's reducers."""
        stages = zip(plan.stages, pairwise((self.n, *plan.tokens)), strict=True)
        return sum(self.stage(plan, layer, n, keep) for layer, (n, keep) in stages)

    def plan(self, plan: Plan) -> int:
        """FLOPs of one image under a plan; equal to `count(ReducedViT(backbone, plan)).total`."""
        counts = (self.n, *plan.tokens)
        parts = (
            (part, layer, n)
            for segment, n in zip(self.segments(plan), counts, strict=True)
            for part, layer in segment
        )
        return self.embedding + sum(self.part(*part) for part in parts) + self.reducers(plan)

    def _fit(self, part: str, layer: int) -> list[int]:
        """Newton's forward differences of the counts at 1, 2 and 3 tokens: the exact quadratic."""
        block = self.backbone.blocks[layer - 1]
        module, run = {
            "attend": (block, lambda x: attend(block, x)[0]),
            "mlp": (block, lambda x: mlp(block, x)),
            "head": (self.backbone, lambda x: classify(self.backbone, self.backbone.norm(x))),
        }[part]
        shapes = [(1, self.num_prefix + n, self.backbone.embed_dim) for n in (1, 2, 3)]
        column = [_count(module, run, self._like(*shape)) for shape in shapes]
        differences = []
        while column:
            differences.append(column[0])
            column = [after - before for before, after in pairwise(column)]
        return differences

    def save(self) -> None:
        """Keep what has been counted for later processes."""
        stored_counts.shared().save()

    def _like(self, *shape: int) -> Tensor:
        return blank_image(self.backbone).new_zeros(shape)


def _count(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    return int(analyse(_Part(module, function), x).total())


def _monomials(n: int, keep: int) -> tuple[int, ...]:
    return 1, n, keep, n * n, n * keep, keep * keep


class _Part(nn.Module):
    """Something that is done with a module, as a module of its own, so that fvcore can count it."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
