"""LoTM-2D: local token merging along rows and columns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.core.ops import join, take_rows
from tokred.core.pairs import beside, disjoint, grid_of, paired
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("lotm2d", paper="An extension of LoTM (Haroun et al., ICONIP 2024, hal-04781040)")
class LoTM2D(Reducer):
    """Merge the most similar disjoint pairs of neighbours along rows and columns of patches into their means.

    Not published: LoTM in both directions, without its fixed pairs. The neighbours of a token are the nearest
    one on its right and the nearest one below it, by the mean positions of their patches; on the full grid
    these are the adjacent patches. The most similar pair of neighbours is chosen, then the most similar one
    whose tokens are both free, and so on. A merged token takes the place of its first half. If more tokens
    are removed than there are such pairs (from about 45 % on), tokens without a partner are paired in
    sequence order.

    With `grid`, every row merges the same number of fixed pairs of neighbours, as in LoTM, and then every
    column of the result does. So h x w tokens become a smaller full grid in raster order. The token counts
    must be those of grids, such as 168, 144 and 120. No budget chooses such counts; give them, as in
    `--tokens "168 144 120"`.
    Cost: 6 N C; with `grid` up to 3 N C.

    Args:
        grid: keep the tokens a rectangular grid, of a shape as near to the image's as their number allows.
        weighted: weigh the mean by token sizes.
        proportional: add log(size) to later attention scores.
        metric: "x" for the tokens, "keys" for the attention keys averaged over heads.
    """

    groups = ("merging", "training-free")
    stages = (4, 7, 11)
    knob = "removed"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        grid: bool = False,
        weighted: bool = False,
        proportional: bool = False,
        metric: Literal["x", "keys"] = "x",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.grid, self.weighted, self.proportional, self.metric = grid, weighted, proportional, metric

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Merge:
        tokens = view.x.detach().float() if self.metric == "x" else view.key_metric.detach()
        weight = view.size if self.weighted else None
        label = self._rectangle(tokens, view.grid, weight) if self.grid else self._free(tokens, view.position)
        return Merge(label, self.keep, weight)

    def _free(self, tokens: Tensor, position: Tensor) -> Tensor:
        first = torch.arange(2 * self.n, device=tokens.device).expand(tokens.shape[0], -1) % self.n
        second, exists = beside(position)  # [B, 2 n]
        similarity = F.cosine_similarity(take_rows(tokens, first), take_rows(tokens, second), dim=-1)
        similarity = torch.where(exists, similarity, -torch.inf)
        chosen = disjoint(first, second, similarity, self.n)

        used = torch.zeros_like(first[:, : self.n])
        used = used.scatter_add(1, first, chosen.long()).scatter_add(1, second, chosen.long())
        rest = used.argsort(dim=1, stable=True)  # tokens without a partner come first, in their order
        alone = 1 - used.gather(1, rest[:, 1::2])
        first, second = torch.cat([first, rest[:, :-1:2]], dim=1), torch.cat([second, rest[:, 1::2]], dim=1)
        score = torch.where(chosen, similarity, -torch.inf)
        # Below any cosine.
        score = torch.cat([score, torch.where(alone > 0, -2.0, -torch.inf)], dim=1)
        best = score.argsort(dim=1, descending=True, stable=True)[:, : self.n - self.keep]
        first, second = first.gather(1, best), second.gather(1, best)
        return join(torch.maximum(first, second), torch.minimum(first, second), self.n)

    def _rectangle(self, tokens: Tensor, grid: tuple[int, int], weight: Tensor | None) -> Tensor:
        (rows, columns), (high, wide) = grid_of(self.n, grid), grid_of(self.keep, grid)
        if not (0 < rows <= 2 * high <= 2 * rows and 0 < columns <= 2 * wide <= 2 * columns):
            raise TokredError(
                f"lotm2d.grid keeps a rectangle, and {self.n} tokens cannot become {self.keep} so on a grid "
                f"of {grid[0]} x {grid[1]}; no budget finds such counts: use --tokens, such as 168 144 120."
            )
        line = torch.arange(rows, device=tokens.device).unsqueeze(1)
        label = paired(tokens.unflatten(1, (rows, columns)), columns - wide) + wide * line
        label = label.flatten(1)  # [B, n], into rows of `wide` tokens
        middle = Merge(label, rows * wide, weight).pool(tokens).unflatten(1, (rows, wide))
        down = paired(middle.transpose(1, 2), rows - high).mT * wide  # [B, rows, wide]
        down = down + torch.arange(wide, device=tokens.device)
        return down.flatten(1).gather(1, label)
