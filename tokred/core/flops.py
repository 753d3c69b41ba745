"""FLOPs as the paper counts them: fvcore's, where one multiply-accumulate is one FLOP.

fvcore does not see fused attention, `cdist` or cosine similarity; they get handles here. Element-wise,
reduction, sorting and indexing operators are on a written list that counts zero, as is fvcore's convention.
Any other operator is an error: a number that silently leaves work out is worse than none. LayerNorm counts
five per element, as fvcore has it.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from tokred.core.backbone import blank_image
from tokred.errors import UncountedOp
from tokred.utils.devices import evaluating

_ELEMENTWISE = """
    abs add add_ addcmul atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor
    clamp_ clamp_min clamp_min_ cos div div_ elu eq erf exp exp_ expm1 floor floor_divide ge gelu gt isfinite
    isnan le lerp log log1p log_softmax logical_and logical_not logical_or lt maximum minimum mul mul_ ne
    neg pow reciprocal remainder round rsqrt rsub sigmoid sign silu sin softmax sqrt sqrt_ square sub sub_
    tanh where __and__ __lshift__ __or__ __rshift__ __xor__
"""
_REDUCTIONS = """
    all amax amin any argmax argmin cummax cumsum frobenius_norm linalg_vector_norm logsumexp mean min norm
    prod std sum var
"""
_SORTING = "argsort sort topk"
_INDEXING = """
    alias as_strided broadcast_tensors clone diagonal expand_as fill_ index_add index_copy index_put
    index_select lift_fresh masked_fill_ movedim mT numpy_T one_hot pad repeat repeat_interleave resolve_conj
    scatter scatter_ scatter_add scatter_add_ scatter_reduce tile tril triu unflatten zero_
"""
_CREATION = "bernoulli_ eye feature_dropout linspace meshgrid new_ones ones_like real upsample_bicubic2d"

#: Operators that count zero: no multiply-accumulates by the convention. fvcore itself ignores a few more.
ZERO_OPS = frozenset(
    f"aten::{name}"
    for group in (_ELEMENTWISE, _REDUCTIONS, _SORTING, _INDEXING, _CREATION)
    for name in group.split()
)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """FLOPs of fused attention: B H N M d for the scores and B H N M e for the weighted values."""
    q, k, v = (get_shape(value) for value in inputs[:3])
    return Counter({"attention": prod(q[:-1]) * k[-2] * (q[-1] + v[-1])})


def _cdist_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One multiply-accumulate for each pair and channel: B N M C."""
    a, b = get_shape(inputs[0]), get_shape(inputs[1])
    return Counter({"cdist": prod(a) * b[-2]})


def _cosine_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A dot product and two squared norms for each pair of vectors: 3 C each."""
    return Counter({"cosine_similarity": 3 * prod(get_shape(inputs[0]))})


def _vecdot_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One multiply-accumulate for each result and channel."""
    return Counter({"vecdot": get_shape(inputs[0])[-1] * prod(get_shape(outputs[0]))})


def _bag_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """FLOPs of an embedding bag: one for each row and channel of a weighted sum, zero for plain sums."""
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
        total: FLOPs of the whole model, the reducers included.
        reducers: FLOPs of the reducers alone: deciding, and applying the decision.
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
    with evaluating(module):
        analysis.total()
    # Operators of tokred's own are searches that run on the host.
    unknown = sorted(op for op in {*analysis.unsupported_ops()} - ZERO_OPS if not op.startswith("tokred::"))
    if unknown:
        raise UncountedOp(
            f"No FLOP count for {', '.join(unknown)} in {type(module).__name__}: "
            "contract with matmul or einsum, or add the operator to tokred.core.flops."
        )
    return analysis


def count(model: Any) -> Flops:
    """FLOPs of one image, from fvcore's trace of an assembled `ReducedViT` at its own image size."""
    analysis = analyse(model, blank_image(model.backbone))
    by_operator = {name: int(flops) for name, flops in analysis.by_operator().items()}
    return Flops(int(analysis.total()), int(analysis.total("stages")), by_operator)
