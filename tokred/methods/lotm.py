"""LoTM: local token merging."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.core import curves
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("lotm", paper="Haroun et al., ICONIP 2024, hal-04781040")
class LoTM(Reducer):
    """Merge the most similar pairs of neighbouring tokens into their mean, in raster order.

    Pairs are disjoint neighbours (0, 1), (2, 3), ... of the current sequence; an odd last token stays as it
    is. Where section 4 of the paper leaves details open, prefix tokens are not paired, similarity is the
    cosine of the tokens after the attention residual, and a merged token takes the place of its left half, so
    that every token stays a contiguous run of patches.

    The options `curve` and `window` are not in the paper. The first stage puts the patches, on a grid of any
    shape, in the order of the curve. Later stages pair neighbours in the resulting sequence, so that every
    token stays a contiguous run of the curve.
    Cost: 3/2 N C, and 3 N C with a larger window.

    Args:
        order: "inplace" puts a merged token in the place of its left half; "append", the literal reading of
            equation 16, moves merged tokens to the end.
        weighted: weigh the mean by token sizes, as ToMe does; the paper does not.
        proportional: add log(size) to later attention scores, as ToMe does; the paper does not.
        metric: "x" for the tokens, "keys" for the attention keys averaged over heads.
        curve: order of the patches in which neighbours are defined: "raster", row by row from the left
            (published); "snake", every second row from the right; or "hilbert", a generalised Hilbert curve,
            which takes one diagonal step if the longer side of the grid is odd and the shorter one even.
        window: length of the disjoint windows of the sequence within which neighbours may merge: 2 for pairs
            (published). In longer windows any two neighbours may merge, and a run of merged neighbours
            becomes one token.
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
        curve: Literal["raster", "snake", "hilbert"] = "raster",
        window: int = 2,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if window < 2:
            raise TokredError(f"lotm.window is a number of neighbours, at least 2, got {window}.")
        if window > 2 and order == "append":
            raise TokredError('lotm.order="append" is defined for pairs; leave lotm.window at 2.')
        self.order, self.weighted, self.proportional, self.metric = order, weighted, proportional, metric
        self.curve, self.window = curve, window

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        tokens = view.x.float() if self.metric == "x" else view.key_metric
        if self.curve == "raster" or view.history is not None:
            label = self._label(tokens)
        else:
            passed = curves.along(self.curve, view.grid, self.n, tokens.device)
            label = self._label(tokens[:, passed])[:, passed.argsort()]
        return Merge(label, self.keep, weight=view.size if self.weighted else None)

    def _label(self, tokens: Tensor) -> Tensor:
        if self.window == 2:
            similarity = F.cosine_similarity(tokens[:, :-1:2], tokens[:, 1::2], dim=-1)
        else:
            inside = torch.arange(1, self.n, device=tokens.device) % self.window > 0
            similarity = F.cosine_similarity(tokens[:, :-1], tokens[:, 1:], dim=-1)
            similarity = torch.where(inside, similarity, -torch.inf)
        best = similarity.argsort(dim=1, descending=True, stable=True)[:, : self.n - self.keep]
        joins = 2 * best + 1 if self.window == 2 else best + 1
        starts = torch.ones(tokens.shape[:2], dtype=torch.long, device=joins.device).scatter(1, joins, 0)
        if self.order == "inplace":
            return starts.cumsum(1) - 1  # a token that joins takes the slot on its left
        alone = starts.scatter(1, joins - 1, 0)
        slot = torch.arange(2 * self.keep - self.n, self.keep, device=joins.device).expand_as(joins)
        return (alone.cumsum(1) - 1).scatter(1, joins - 1, slot).scatter(1, joins, slot)
