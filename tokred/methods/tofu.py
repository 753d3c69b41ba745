"""ToFu: pruning in early layers, norm-preserving merging in late ones."""

from __future__ import annotations

import torch

from tokred.core.ops import alternate, bipartite_labels, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("tofu", paper="Kim et al., WACV 2024, arXiv:2312.01026")
class ToFu(Reducer):
    """Match tokens as ToMe does; drop the matched ones in early layers, merge them in late ones.

    Token fusion, as in the paper: tokens can be averaged where a layer is nearly linear between them, as late
    layers are. Matching and the order of the output are ToMe's. In the first layers, as many as `prune` says,
    the r sources are dropped and their partners stay as they are. In later layers a group becomes its mean,
    scaled to the largest norm among its tokens (MLERP). Means are not weighted by size, and later attention
    does not depend on sizes.

    The authors published no code. Two public re-implementations divide by the norm of the token that stays
    instead of that of the mean, so that the result does not have the largest norm, and prune in seven of
    twelve layers; the paper reports six as best. A mean of length 0 stays 0.
    Cost: N²/4 d.

    Args:
        prune: fraction of the model's layers that prune, counted from the first.
    """

    groups = ("merging", "pruning", "training-free")
    stages = "all"
    knob = "removed"

    def __init__(self, n: int, keep: int, dim: int, heads: int, *, prune: float = 0.5) -> None:
        super().__init__(n, keep, dim, heads)
        if not 0 <= prune <= 1:
            raise TokredError(f"tofu.prune is a fraction of the layers, from 0 to 1, got {prune:g}.")
        self.prune = prune

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        keys = unit_rows(view.key_metric)
        a, b = alternate(view.num_prefix)
        label = bipartite_labels(keys, a, b, self.n - self.keep)
        if view.layer > self.prune * view.depth:
            return Merge(label, self.keep, reduce="norm")
        stays = self.keep - label[:, b].shape[1]  # tokens of A that have no partner come first
        label[:, a] = torch.where(label[:, a] < stays, label[:, a], -1)
        return Merge(label, self.keep, drops=True)
