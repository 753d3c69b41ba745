"""PiToMe: token merging that protects tokens unlike the others."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.core.ops import ROWS, join, take_rows, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("pitome", paper="Tran et al., NeurIPS 2024, arXiv:2405.16148")
class PiToMe(Reducer):
    """Merge tokens that are similar to many others, and protect those that stand out.

    Energy-based merging, as in the paper. S holds the cosine similarities of keys averaged over heads. The
    energy of a token is the mean over j of ELU(S_ij - m), with a margin m that falls linearly with depth. The
    tokens in descending order of energy alternate between sources and destinations. In a "sorted" layer, the
    r sources with the best matches join these. In a "protect" layer, only the first 2r tokens alternate, and
    each of the r sources joins its best match. Groups become means weighted by size.

    Differences from the authors' code: the margin counts all layers from the first, and so does a halved
    schedule; a stage leaves int(n0 * rate^s) tokens instead of rounding in every layer; prefix tokens beside
    CLS are set aside as well; remaining tokens stay in raster order, not in order of energy, on which no
    later layer depends; energies and matches are computed in float32, with a guard against zero keys.
    Cost: N² d for S, and N² ELUs.

    Args:
        margin: m in the first layer; layer l of L, from 0, has margin (1 - l / L). As published 0.75 for DeiT
            and MAE, 0.9 for AugReg and BLIP, 0.95 for CLIP.
        layers: "sorted-first" (published for DeiT) sorts in the first half of the layers and protects in the
            second, "protect-first" (published for MAE) is the reverse; "sorted" or "protect" for all.
        proportional: add log(size) to later attention scores. The published ViTs do not.
    """

    groups = ("merging", "training-free")
    stages = "all"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        margin: float = 0.75,
        layers: Literal["sorted-first", "protect-first", "sorted", "protect"] = "sorted-first",
        proportional: bool = False,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if not -1 <= margin <= 1:
            raise TokredError(f"pitome.margin is a cosine, from -1 to 1, got {margin:g}.")
        self.margin, self.layers, self.proportional = margin, layers, proportional

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        removed = self.n - self.keep
        keys = unit_rows(view.key_metric)
        similarity = torch.matmul(keys, keys.mT)  # [B, n, n]
        margin = self.margin * (1 - (view.layer - 1) / view.depth)
        order = energy(similarity, margin).argsort(dim=1, descending=True, stable=True)
        if self._protects(view):
            order = order[:, : 2 * removed]
        a, b = order[:, ::2], order[:, 1::2]
        between = take_rows(similarity, a).gather(2, b.unsqueeze(1).expand(-1, a.shape[1], -1))
        best, partner = between.max(-1)  # [B, |A|]
        chosen = best.argsort(dim=1, descending=True, stable=True)[:, :removed]
        source, destination = a.gather(1, chosen), b.gather(1, partner.gather(1, chosen))
        return Merge(join(source, destination, self.n), self.keep, weight=view.size)

    def _protects(self, view: View) -> bool:
        first = view.layer <= (view.depth + 1) // 2
        if self.layers in ("sorted", "protect"):
            return self.layers == "protect"
        return first == (self.layers == "protect-first")


def energy(similarity: Tensor, margin: float) -> Tensor:
    """The mean of ELU(similarity - margin) over the rows of [B, n, n], as [B, n]."""
    return torch.cat([F.elu(rows - margin).mean(-1) for rows in similarity.split(ROWS, dim=1)], dim=1)
