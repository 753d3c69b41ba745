"""MCTF: bidirectional matching by similarity, attention and size."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred.core.ops import alternate, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("mctf", paper="Lee et al., CVPR 2024, arXiv:2403.10030")
class MCTF(Reducer):
    """Match tokens by similarity, little attention received and small size, in both directions.

    Multi-criteria token fusion of the paper, without its one-step-ahead attention: tokens are fused before a
    layer by the attention of the layer before, which is what the authors' code does with that option off. The
    affinity of two tokens is ((1 + cos(x_i, x_j)) / 2)^(1/similarity) (a_i a_j)^(-1/information) (s_i
    s_j)^(-1/size), with the attention received a and the sizes s. Positions of the sequence, prefix included,
    alternate between A and B; the prefix takes no part. Half of the r sources are tokens of A that join one
    of B; the others are tokens of B that, with all that have joined them, join one of the tokens left in A.
    Groups become means weighted by a s. The output is what is left of A in order, then what is left of B,
    best affinity first.

    Other differences from the authors' code: prefix tokens cannot be destinations; any number of tokens can
    be reduced; the tokens left in A stay in order without CLS, too; zero tokens have a cosine of 0.
    Cost: N²/4 C, and the attention map of the layer before, H N² d.

    Args:
        similarity: temperature of the cosine.
        information: temperature of the attention received.
        size: temperature of the sizes.
        proportional: add log(size) to later attention scores, as published.
    """

    groups = ("merging", "training-free")
    site = "pre"
    stages = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    knob = "removed"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        similarity: float = 1.0,
        information: float = 20.0,
        size: float = 40.0,
        proportional: bool = True,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        for name, value in (("similarity", similarity), ("information", information), ("size", size)):
            if not value > 0:
                raise TokredError(f"mctf.{name} is a temperature and must be positive, got {value:g}.")
        self.similarity, self.information, self.size = similarity, information, size
        self.proportional = proportional

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        forth = (self.n - self.keep) // 2
        back = self.n - self.keep - forth
        attention = view.received_attention.detach().clamp(min=1e-12)  # [B, n]
        a, b = alternate(view.num_prefix)
        affinity = self._affinity(view.x.float(), attention, view.size, a, b)  # [B, |A|, |B|]

        best, partner_of_a = affinity.max(-1)
        source = best.argsort(dim=1, descending=True, stable=True)[:, :forth]
        left = torch.ones_like(partner_of_a).scatter(1, source, 0)
        best, partner_of_b = torch.where(left.unsqueeze(1) > 0, affinity.mT, -1.0).max(-1)
        order = best.argsort(dim=1, descending=True, stable=True)  # [B, |B|], sources first

        slot_of_a = left.cumsum(1) - 1
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        place = torch.zeros_like(order).scatter(1, order, place)
        joined = slot_of_a.gather(1, partner_of_b)
        slot_of_b = torch.where(place < back, joined, place + left.shape[1] - forth - back)
        label = order.new_empty(order.shape[0], self.n)
        label[:, a] = torch.where(left > 0, slot_of_a, slot_of_b.gather(1, partner_of_a))
        label[:, b] = slot_of_b
        return Merge(label, self.keep, weight=attention * view.size)

    def _affinity(self, x: Tensor, attention: Tensor, size: Tensor, a: slice, b: slice) -> Tensor:
        unit = unit_rows(x.detach())
        cosine = torch.matmul(unit[:, a], unit[:, b].mT)
        similarity = ((1 + cosine) / 2).clamp(min=0) ** (1 / self.similarity)
        factor = attention ** (-1 / self.information) * size ** (-1 / self.size)
        return similarity * factor[:, a].unsqueeze(2) * factor[:, b].unsqueeze(1)
