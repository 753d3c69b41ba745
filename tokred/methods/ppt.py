"""PPT: prune tokens in images where some stand out, merge tokens in the others."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred.core.ops import alternate, bipartite_labels, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError

_PATCHES = 196  # for which the variance is published


@register("ppt", paper="Wu et al., 2023, arXiv:2310.01812")
class PPT(Reducer):
    """Drop the least important tokens of an image where importances differ much, else merge similar tokens.

    Token pruning and pooling, as in the paper. The importance of a token is its CLS attention times the norm
    of its values, as a fraction of the sum over all tokens. If the variance of these fractions is below a
    threshold, no token stands out, and tokens are merged as in ToMe: every second one joins its most similar
    partner by keys, best matches first, and groups become means weighted by size. Otherwise the least
    important tokens are dropped. This is decided anew for each image and layer; the number of removed tokens
    is the same either way. After pruning, tokens are in order of importance; the next layer splits this
    sequence.

    Differences from the authors' code: both decisions are computed for all images and one is chosen, whereas
    their code splits the batch; keys have a guard against zero vectors.
    Cost: N²/4 d, and N C for one row of attention. The norms, N C, count no FLOPs.

    Args:
        variance: variance of the fractions below which the tokens of an image are merged, for 196 patches.
            For other numbers of patches it is multiplied by (196 / patches)², as the variance itself changes.
        proportional: add log(size) to later attention scores, as published.
    """

    groups = ("merging", "pruning", "training-free")
    knob = "removed"
    needs_cls = True

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        variance: float = 7e-5,
        proportional: bool = True,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if not variance >= 0:
            raise TokredError(f"ppt.variance must not be negative, got {variance:g}.")
        self.variance, self.proportional = variance, proportional

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        share = view.importance / view.importance.sum(1, keepdim=True).clamp(min=1e-12)  # [B, n]
        patches = view.grid[0] * view.grid[1]
        flat = share.var(1, keepdim=True) < self.variance * (_PATCHES / patches) ** 2
        label = torch.where(flat, self._merged(view), self._kept(share))
        return Merge(label, self.keep, weight=view.size, drops=True)

    def _kept(self, share: Tensor) -> Tensor:
        """Labels [B, n] that drop the least important tokens."""
        rank = share.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(rank < self.keep, rank, -1)

    def _merged(self, view: View) -> Tensor:
        """Labels [B, n] of ToMe's groups."""
        tokens = unit_rows(view.key_metric)
        a, b = alternate(view.num_prefix)
        return bipartite_labels(tokens, a, b, self.n - self.keep)
