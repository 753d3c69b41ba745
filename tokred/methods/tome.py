"""ToMe: token merging by bipartite soft matching."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokred.core.ops import alternate, bipartite_labels, head_mean, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("tome", paper="Bolya et al., ICLR 2023, arXiv:2210.09461")
class ToMe(Reducer):
    """Match every second token to its most similar partner and merge the best matches, a few in every layer.

    As in section 3 of the paper, the positions of the whole sequence, prefix included, alternate between sets
    A and B; prefix tokens are neither sources nor destinations. The output is the unmerged tokens of A, then
    all of B; the next layer splits this sequence. Keys are normalised with a guard against zero vectors,
    which the official code lacks. Without a CLS token, the official code leaves the unmerged tokens in order
    of similarity; here they stay in sequence order.

    The options `split` and `weight` are from later papers.
    Cost: N²/4 d.

    Args:
        metric: "keys" averaged over heads (published), or "x" for the tokens themselves.
        proportional: add log(size) to later attention scores (published for use without training).
        split: "alternate" (published), or "checkerboard" (FPET, Kim et al., CVPR 2025, arXiv:2503.20282),
            whose set A has the patches whose row and column are both even or both odd. FPET merges all of A,
            in one layer. After the first stage tokens form no grid, so they alternate.
        weight: weight of a token in the mean of its group: "size" (published), or "class-importance"
            (ToMeCIS, Seol et al., IECON 2023), the CLS attention times the norm of the values averaged over
            heads.
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
        split: Literal["alternate", "checkerboard"] = "alternate",
        weight: Literal["size", "class-importance"] = "size",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.metric, self.proportional, self.split, self.weight = metric, proportional, split, weight
        self.needs_cls = weight == "class-importance"

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        tokens = unit_rows(view.key_metric if self.metric == "keys" else view.x.float())
        a, b = self._halves(view)
        label = bipartite_labels(tokens, a, b, self.n - self.keep)
        return Merge(label, self.keep, weight=self._weight(view))

    def _halves(self, view: View) -> tuple[slice, slice] | tuple[Tensor, Tensor]:
        """Which patch tokens are in set A, and which in set B."""
        if self.split == "alternate" or view.history is not None:
            return alternate(view.num_prefix)
        columns = view.grid[1]
        patch = torch.arange(self.n, device=view.x.device)
        order = ((patch // columns + patch % columns) % 2).argsort(stable=True)  # set A first
        first = sum((i // columns + i % columns) % 2 == 0 for i in range(self.n))
        return order[:first], order[first:]

    def _weight(self, view: View) -> Tensor:
        if self.weight == "size":
            return view.size
        norm = torch.linalg.vector_norm(head_mean(view.values), dim=-1)
        return (view.cls_attention * norm).clamp(min=1e-12)
