"""Top-K: keep the tokens that the CLS token attends to."""

from __future__ import annotations

from typing import Literal

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Keep
from tokred.core.registry import register


@register(
    "topk", paper="Liang et al., ICLR 2022, arXiv:2202.07800; Haurum et al., ICCVW 2023, arXiv:2308.04657"
)
class TopK(Reducer):
    """Keep the patches that the CLS token attends to most, drop the others.

    EViT without its fused token. Attention is that of the stage's own layer, averaged over heads.
    Cost: N C for one row of attention.

    Args:
        order: order of the kept tokens, "score" (descending, as published) or "raster"; the network's result
            does not depend on it.
    """

    groups = ("core", "pruning", "training-free")
    needs_cls = True

    def __init__(
        self, n: int, keep: int, dim: int, heads: int, *, order: Literal["score", "raster"] = "score"
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.order = order

    def forward(self, view: View) -> Keep:
        kept = view.cls_attention.argsort(dim=1, descending=True, stable=True)[:, : self.keep]
        return Keep(kept if self.order == "score" else kept.sort(dim=1).values, self.n)
