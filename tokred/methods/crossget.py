"""CrossGET: token merging by complete-graph soft matching."""

from __future__ import annotations

import torch

from tokred.core.ops import join, take_rows, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("crossget", paper="Shi et al., ICML 2024, arXiv:2305.17455")
class CrossGET(Reducer):
    """Match all tokens with all others, not only with half of them, and let the best matches join.

    Complete-graph soft matching, as in the paper. Similarities are cosines of the keys, averaged over heads.
    Tokens are ordered by their best similarity; a token's match is the most similar of those that come after
    it, so that of two tokens only one can be the other's source. The r tokens with the best matches are
    sources, and each joins the most similar token that is not a source. Groups become means weighted by size.

    Differences from the authors' code: a ViT has no cross-modal query, so neither the choice of sources nor
    the mean is weighted by importance; similarities are computed in float32, with a guard against zero keys.
    Cost: N² d.

    Args:
        proportional: add log(size) to later attention scores, as ToMe does.
    """

    groups = ("merging", "training-free")
    stages = "all"
    knob = "removed"

    def __init__(self, n: int, keep: int, dim: int, heads: int, *, proportional: bool = False) -> None:
        super().__init__(n, keep, dim, heads)
        self.proportional = proportional

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        keys = unit_rows(view.key_metric)
        similarity = torch.matmul(keys, keys.mT)  # [B, n, n]
        index = torch.arange(self.n, device=keys.device)
        # The best pair is a tie: exactly symmetric, so that its first token comes first on every device.
        similarity = torch.maximum(similarity, similarity.mT)
        similarity = torch.where(index == index.unsqueeze(1), -torch.inf, similarity)
        order = similarity.amax(-1).argsort(dim=1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter(1, order, index.expand_as(order))
        later = rank.unsqueeze(1) > rank.unsqueeze(2)  # [B, n, n], whether the column comes after the row
        match = torch.where(later, similarity, -torch.inf).amax(-1)
        source = match.argsort(dim=1, descending=True, stable=True)[:, : self.n - self.keep]
        stays = torch.ones_like(match).scatter(1, source, 0) > 0
        destination = torch.where(stays.unsqueeze(1), take_rows(similarity, source), -torch.inf).argmax(-1)
        return Merge(join(source, destination, self.n), self.keep, weight=view.size)
