"""EViT: keep attentive tokens, fuse the inattentive ones."""

from __future__ import annotations

import torch

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("evit", paper="Liang et al., ICLR 2022, arXiv:2202.07800")
class EViT(Reducer):
    """Keep the patches that the CLS token attends to most, fuse all others into one extra token.

    As in section 3.2 of the paper. The fused token is the sum of the others weighted by their CLS attention,
    not divided by the sum of the weights, as in the official code and in the TokenReduction benchmark. It
    comes last and competes like any other token at the next stage. A keep rate leaves int(n0 * rate^s) + 1
    tokens, as in the benchmark.
    Cost: N C for one row of attention, and as much for the fused token.

    Args:
        normalize: divide the fused token by the sum of its weights, which makes it an average.
    """

    groups = ("core", "pruning", "training-free")
    extra = 1
    needs_cls = True

    def __init__(self, n: int, keep: int, dim: int, heads: int, *, normalize: bool = False) -> None:
        super().__init__(n, keep, dim, heads)
        self.normalize = normalize

    def forward(self, view: View) -> Merge:
        score = view.cls_attention  # [B, n]
        fused = self.keep - 1  # the last slot
        kept = score.argsort(dim=1, descending=True, stable=True)[:, :fused]
        slots = torch.arange(fused, device=kept.device).expand_as(kept)
        label = torch.full_like(score, fused, dtype=torch.long).scatter(1, kept, slots)
        if self.normalize:
            left = score.scatter(1, kept, 0)
            score = left / left.sum(1, keepdim=True)
        weight = score.scatter(1, kept, 1.0)
        return Merge(label, self.keep, weight=weight, reduce="sum")
