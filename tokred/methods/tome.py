"""ToMe: token merging by bipartite soft matching."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from tokred.core.ops import best_match
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("tome", paper="Bolya et al., ICLR 2023, arXiv:2210.09461")
class ToMe(Reducer):
    """Match every second token to its most similar partner and merge the best matches, a few in every layer.

    Section 3 of the paper. The whole sequence, prefix included, alternates between sets A and B; the prefix
    is neither source nor destination. The output is the unmerged tokens of A, then all of B, which is what
    the next layer's split sees. Keys are normalised with a guard against zero vectors, which the official
    code lacks. Without a CLS token the official code leaves the unmerged tokens in order of similarity; here
    they stay in sequence order.

    Args:
        metric: "keys" averaged over heads (published), or "x" for the tokens themselves.
        proportional: add log(size) to later attention scores (published for use without training).
    """

    groups = ("core", "merging", "training-free")
    stages = "all"
    knob = "removed"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        metric: Literal["keys", "x"] = "keys",
        proportional: bool = True,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.metric, self.proportional = metric, proportional

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        removed = self.n - self.keep
        tokens = F.normalize(view.key_metric if self.metric == "keys" else view.x.float(), dim=-1, eps=1e-12)
        first = (
            view.num_prefix % 2
        )  # patch i stands at position prefix + i of the sequence; even positions are set A
        a, b = tokens[:, first::2], tokens[:, 1 - first :: 2]
        similarity, partner = best_match(a, b)  # [B, |A|]
        source = similarity.argsort(dim=1, descending=True, stable=True)[:, :removed]

        stays = torch.ones_like(partner).scatter(1, source, 0)
        unmerged = a.shape[1] - removed
        label = partner.new_empty(partner.shape[0], self.n)
        label[:, first::2] = torch.where(stays > 0, stays.cumsum(1) - 1, unmerged + partner)
        label[:, 1 - first :: 2] = torch.arange(unmerged, self.keep, device=label.device)
        return Merge(label, self.keep, weight=view.size)
