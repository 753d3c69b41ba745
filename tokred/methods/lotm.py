"""LoTM: local token merging."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("lotm", paper="Haroun et al., ICONIP 2024, hal-04781040")
class LoTM(Reducer):
    """Merge the most similar pairs of neighbouring tokens into their mean, in raster order.

    Pairs are disjoint neighbours (0, 1), (2, 3), ... of the current sequence; an odd last token stays. The
    paper's section 4 leaves some points open. Here the prefix tokens take no part in the pairing, similarity
    is the cosine of the tokens after the attention residual, and a merged token takes the place of its left
    half, so that every token stays a contiguous run of patches.
    Cost: 3/2 N C.

    Args:
        order: "inplace", or "append" for the literal reading of equation 16, which moves merged tokens to the
            end.
        weighted: weigh the mean by token sizes, as ToMe does; the paper does not.
        proportional: add log(size) to later attention scores, as ToMe does; the paper does not.
        metric: "x" for the tokens, "keys" for the attention keys averaged over heads.
    """

    groups = ("core", "merging", "training-free")
    stages = (4, 7, 11)
    knob = "removed"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        order: Literal["inplace", "append"] = "inplace",
        weighted: bool = False,
        proportional: bool = False,
        metric: Literal["x", "keys"] = "x",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.order, self.weighted, self.proportional, self.metric = order, weighted, proportional, metric

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        tokens = view.x.float() if self.metric == "x" else view.key_metric
        paired = self.n // 2 * 2
        similarity = F.cosine_similarity(tokens[:, 0:paired:2], tokens[:, 1:paired:2], dim=-1)  # [B, n // 2]
        best = similarity.argsort(dim=1, descending=True, stable=True)[:, : self.n - self.keep]
        label = self._in_place(best) if self.order == "inplace" else self._appended(best)
        return Merge(label, self.keep, weight=view.size if self.weighted else None)

    def _in_place(self, best: Tensor) -> Tensor:
        starts = torch.ones(best.shape[0], self.n, dtype=torch.long, device=best.device)
        return starts.scatter(1, 2 * best + 1, 0).cumsum(1) - 1  # the right half joins the slot on its left

    def _appended(self, best: Tensor) -> Tensor:
        alone = torch.ones(best.shape[0], self.n, dtype=torch.long, device=best.device)
        alone = alone.scatter(1, 2 * best, 0).scatter(1, 2 * best + 1, 0)
        slot = (self.n - 2 * best.shape[1] + torch.arange(best.shape[1], device=best.device)).expand_as(best)
        return (alone.cumsum(1) - 1).scatter(1, 2 * best, slot).scatter(1, 2 * best + 1, slot)
