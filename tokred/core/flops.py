"""FLOPs as the paper counts them: fvcore's, where one multiply-accumulate is one FLOP.

fvcore does not see fused attention, `cdist` or cosine similarity; they get handles here. Element-wise, reduction, sorting and
indexing operators are on a written list that counts zero, as is fvcore's convention. Any other operator is an error: a number that
silently leaves work out is worse than none. LayerNorm counts five per element, as fvcore has it.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from tokred.core.plan import Plan
from tokred.core.reducer import Attention, seeded
from tokred.core.vit import ReducedViT, Stage, State, num_heads, num_patches
from tokred.errors import UncountedOp

_ELEMENTWISE = """
    abs add add_ addcmul bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor clamp_ clamp_min clamp_min_ div div_
    elu eq erf exp exp_ expm1 ge gelu gt isfinite isnan le lerp log log1p log_softmax logical_and logical_not logical_or lt maximum
    minimum mul mul_ ne neg pow reciprocal rsqrt rsub sigmoid sign softmax sqrt sqrt_ square sub sub_ tanh where __and__ __lshift__
    __or__ __rshift__ __xor__
"""
_REDUCTIONS = """
    all amax amin any argmax argmin cummax cumsum frobenius_norm linalg_vector_norm logsumexp mean min norm prod std sum var
"""
_SORTING = "argsort sort topk"
_INDEXING = """
    alias as_strided broadcast_tensors clone diagonal expand_as fill_ index_add index_copy index_put index_select lift_fresh masked_fill_
    movedim mT numpy_T one_hot repeat repeat_interleave resolve_conj scatter scatter_ scatter_add scatter_add_ scatter_reduce tile tril triu
    unflatten zero_
"""
_CREATION = "bernoulli_ eye feature_dropout new_ones ones_like real upsample_bicubic2d"

#: Operators that count zero: they do no multiply-accumulates that the convention knows. fvcore itself ignores a few more of the kind.
ZERO_OPS = frozenset(
    f"aten::{name}"
    for group in (_ELEMENTWISE, _REDUCTIONS, _SORTING, _INDEXING, _CREATION)
    for name in group.split()
)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Scores and weighted values: B H N M d for each of the two products. Inputs q [B, H, N, d], k [B, H, M, d], v [B, H, M, e]."""
    q, k, v = (get_shape(value) for value in inputs[:3])
    batch_heads = 1
    for length in q[:-2]:
        batch_heads *= length
    return Counter({"attention": batch_heads * q[-2] * k[-2] * (q[-1] + v[-1])})


def _cdist_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One multiply-accumulate for each pair and channel: B N M C."""
    a, b = get_shape(inputs[0]), get_shape(inputs[1])
    batch = 1
    for length in a[:-2]:
        batch *= length
    return Counter({"cdist": batch * a[-2] * b[-2] * a[-1]})


def _cosine_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A dot product and two squared norms for each pair of vectors: 3 C each."""
    count = 1
    for length in get_shape(inputs[0]):
        count *= length
    return Counter({"cosine_similarity": 3 * count})


def _vecdot_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One multiply-accumulate for each result and channel."""
    count = get_shape(inputs[0])[-1]
    for length in get_shape(outputs[0]):
        count *= length
    return Counter({"vecdot": count})


def _bag_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One multiply-accumulate for each row and channel of weighted sums; plain sums count zero, as everywhere."""
    table, rows, weights = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(inputs[6])
    return Counter({"embedding_bag": rows[0] * table[1] if weights is not None else 0})


_HANDLES = {
    "aten::linalg_vecdot": _vecdot_flops,
    "aten::embedding_bag": _bag_flops,
    "aten::scaled_dot_product_attention": _attention_flops,
    "aten::cdist": _cdist_flops,
    "aten::cosine_similarity": _cosine_flops,
}


@dataclass(frozen=True)
class Flops:
    """Multiply-accumulates of one image.

    Attributes:
        total: of the whole model, the reducers included.
        reducers: of the reducers alone: what they compute to decide, and applying it.
        by_operator: total by kind of operator.
    """

    total: int
    reducers: int
    by_operator: dict[str, int]


@torch.no_grad()
def analyse(module: nn.Module, *inputs: Tensor) -> FlopCountAnalysis:
    """fvcore's analysis with tokred's handles.

    Raises:
        UncountedOp: an operator that has no handle and is not on the zero list.
    """
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_HANDLES)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    analysis.total()
    for part, training in modes:  # the model is the caller's: each part gets back its own mode
        part.training = training
    unknown = sorted(set(analysis.unsupported_ops()) - ZERO_OPS)
    if unknown:
        raise UncountedOp(
            f"No FLOP count for {', '.join(unknown)} in {type(module).__name__}: "
            "contract with matmul or einsum, or add the operator to tokred.core.flops."
        )
    return analysis


def count(model: ReducedViT) -> Flops:
    """FLOPs of one image, from fvcore's trace of the assembled model at its own image size."""
    height, width = model.backbone.patch_embed.img_size
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device)
    analysis = analyse(model, image)
    return Flops(
        int(analysis.total()),
        int(analysis.total("stages")),
        {k: int(v) for k, v in analysis.by_operator().items()},
    )


class CostTable:
    """Costs of plans on one backbone without assembling them: exact, and cheap enough to search.

    Every part of a backbone is at most quadratic in its tokens. The polynomials are found from fvcore's counts of the real modules
    at three small lengths; a reducer is counted at the very pair of token counts that a plan asks for.
    """

    def __init__(self, backbone: Any) -> None:
        self.model = ReducedViT(backbone)
        self.backbone = backbone
        self.n = num_patches(backbone)
        self._differences: dict[str, list[int]] = {}
        self._stages: dict[tuple[Any, ...], int] = {}
        self._quadratics: dict[tuple[Any, ...], np.ndarray] = {}

    @cached_property
    def dense(self) -> int:
        """FLOPs of the unreduced model."""
        return self.plan(Plan())

    @cached_property
    def embedding(self) -> int:
        height, width = self.backbone.patch_embed.img_size
        return int(analyse(_Part(self.model, "embed"), self._like(1, 3, height, width)).total())

    @torch.no_grad()
    def stage(self, plan: Plan, layer: int, n: int, keep: int) -> int:
        """What the reducer of a plan costs at one layer, from n to keep tokens."""
        if keep == n:
            return 0
        key = (plan.method, repr(sorted(plan.options.items())), n, keep, layer == 1)
        if key not in self._stages:
            with seeded(0):
                reducer = plan.reducer(
                    n, keep, self.backbone.embed_dim, num_heads(self.backbone), **plan.options
                )
            model, heads = self.model, num_heads(self.backbone)
            sizes = reducer.proportional or self.backbone.global_pool == "avg"
            stage = Stage(reducer, layer, model.depth, model.num_prefix, model.has_cls, 0, sizes)
            x = self._like(1, model.num_prefix + n, self.backbone.embed_dim)
            qkv = self._like(1, heads, model.num_prefix + n, self.backbone.blocks[layer - 1].attn.head_dim)
            before_all = layer == 1 and reducer.site == "pre"
            state = State(
                x, layer, reducer.site, attention=None if before_all else Attention(qkv, qkv, qkv, 1.0)
            )
            self._stages[key] = int(analyse(_StagePart(stage, state), x).total())
        return self._stages[key]

    def reducer_estimate(self, plan: Plan, n: int, keep: int) -> float:
        """What a stage from n to keep tokens costs by a polynomial fitted to small counts.

        Exact for a reducer whose cost is quadratic in its two token counts, for even and odd n apart, which all of tokred's are; a
        guide to the search, never a result.
        """
        if keep == n:
            return 0.0
        key = (plan.method, repr(sorted(plan.options.items())), n % 2, plan.stages[0] == 1)
        if key not in self._quadratics:
            lengths = [16 + n % 2 + 2 * i for i in range(3)]
            if any(
                plan.reducer.floor(length) + 3 > length for length in lengths
            ):  # too few counts to fit a polynomial to
                return float(self.stage(plan, plan.stages[0], n, keep))
            points = [
                (length, max(plan.reducer.floor(length), 12) + j)
                for i, length in enumerate(lengths)
                for j in range(3 - i)
            ]
            design = np.array([_monomials(*point) for point in points], dtype=float)
            even = self._quadratics.get((*key[:2], 0, key[3]))
            if (
                even is not None
                and abs(np.dot(design[0], even) - self.stage(plan, plan.stages[0], *points[0])) < 1
            ):
                self._quadratics[key] = even  # the cost does not ask whether n is odd
            else:
                counts = [self.stage(plan, plan.stages[0], *point) for point in points]
                self._quadratics[key] = np.linalg.solve(design, np.array(counts, dtype=float))
        return float(np.dot(_monomials(n, keep), self._quadratics[key]))

    def segments(self, plan: Plan) -> list[list[tuple[str, int]]]:
        """The parts of the backbone between the stages of a plan, as (part, layer): those that run at one token count."""
        site = plan.reducer.site if plan.stages else "mid"
        split_before = {("attend" if site == "pre" else "mlp", layer) for layer in plan.stages}
        segments: list[list[tuple[str, int]]] = [[]]
        for part in [(part, layer) for layer in range(1, self.model.depth + 1) for part in ("attend", "mlp")]:
            if part in split_before:
                segments.append([])
            segments[-1].append(part)
        segments[-1].append(("head", self.model.depth))
        return segments

    def part(self, part: str, layer: int, n: int) -> int:
        """FLOPs of "attend" or "mlp" of a layer, or of the "head", on n patch tokens."""
        # Layers that print alike cost alike.
        key = f"{part} {self.backbone.blocks[layer - 1]}"
        if key not in self._differences:
            self._differences[key] = self._fit(part, layer)
        return sum(comb(n - 1, power) * difference for power, difference in enumerate(self._differences[key]))

    def reducers(self, plan: Plan) -> int:
        """FLOPs of a plan's reducers."""
        counts = (self.n, *plan.tokens)
        return sum(
            self.stage(plan, layer, n, keep)
            for layer, n, keep in zip(plan.stages, counts, counts[1:], strict=False)
        )

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
        """Newton's forward differences of the counts at 1, 2, 3 tokens: they determine the quadratic in exact integers."""
        module, width = _Part(self.model, part, layer), self.backbone.embed_dim
        column = [
            int(analyse(module, self._like(1, self.model.num_prefix + n, width)).total()) for n in (1, 2, 3)
        ]
        differences = []
        while column:
            differences.append(column[0])
            column = [after - before for before, after in pairwise(column)]
        return differences

    def _like(self, *shape: int) -> Tensor:
        parameter = next(self.backbone.parameters())
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


def _monomials(n: int, keep: int) -> tuple[int, ...]:
    return 1, n, keep, n * n, n * keep, keep * keep


class _Part(nn.Module):
    """One part of a dense model as a module of its own, so that fvcore can count it."""

    def __init__(self, model: ReducedViT, part: str, layer: int = 1) -> None:
        super().__init__()
        self.model, self.part, self.layer = model, part, layer

    def forward(self, x: Tensor) -> Tensor:
        if self.part == "embed":
            return self.model.embed(x).x
        if self.part == "head":
            return self.model.head(State(x))
        step = self.model._attend if self.part == "attend" else self.model._mlp
        return step(State(x, self.layer)).x


class _StagePart(nn.Module):
    """One stage on a given state. Sizes are a result only where the model uses them later; else nothing adds them up."""

    def __init__(self, stage: Stage, state: State) -> None:
        super().__init__()
        self.stage, self.state = stage, state

    def forward(self, x: Tensor) -> Any:
        state = self.stage(replace(self.state, x=x))
        return (state.x, state.size) if self.stage.sizes else state.x
