"""ATS: sample tokens from the distribution of their scores, as many as differ."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokred.core.ops import row_of_heads
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register

_FEWEST, _MOST = 8, 1 << 14  # points; points for each patch


@register("ats", paper="Fayyaz et al., ECCV 2022, arXiv:2111.15667")
class ATS(Reducer):
    """Keep the tokens that evenly spaced points of the cumulative distribution of scores fall on.

    Adaptive token sampling, as in the authors' code. A token's score is its CLS attention times the norm of
    its values. The cumulative sum of the scores, in ascending order, is scaled to the range from 0 to 1.
    Points are spaced evenly from its smallest positive value to 1, and each picks the token with the nearest
    value. A token that is picked several times counts once, so few tokens are kept where few have most of the
    score. The token with the lowest score is never picked. At the threshold t there are n t / (1 - t) points
    for an image of n patches (at least 8 and at most 16384 n) in every layer; 0.5 gives the published number,
    one for each patch.

    The variant of the TokenReduction benchmark (Haurum et al., ICCVW 2023) weights the attention of each head
    by the norm of that head's values, sums the scores in sequence order, and does not scale the sum. Its
    points are the odd multiples of 1 / (2K) below (2K - 1) / (2K), where stage s has K = int(n t^s) + 1 and
    the threshold t is the keep rate; for some K rounding includes the bound, as in the benchmark. The
    benchmark reduces at layers 4, 7 and 10, which are not the default layers here.

    Differences from both: tokens are dropped after the attention of the layer, whereas the published code
    does not compute it for their queries; padding is left out of the authors' scaling. The benchmark computes
    distances with a rounding error of 3e-4, which can decide between tokens that are equally near.
    Cost: N C for one row of attention. The norms, N C, and sorting, N log N, count no FLOPs.

    Args:
        variant: "published", as by the authors, or "benchmark".
    """

    groups = ("pruning", "training-free")
    stages = (4, 5, 6, 7, 8, 9, 10, 11, 12)
    knob = "threshold"
    needs_cls = True

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        variant: Literal["published", "benchmark"] = "published",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.variant = variant

    def forward(self, view: View) -> Merge:
        stays = self._published(view) if self.variant == "published" else self._benchmark(view)
        return Merge(torch.where(stays > 0, stays.cumsum(1) - 1, -1), self.n, drops=True)

    def _published(self, view: View) -> Tensor:
        """1 for tokens that a point falls on, [B, n] int64; 0 for the others."""
        score = view.importance
        order = torch.where(view.valid, score, -1.0).argsort(dim=1, stable=True)  # padding first
        score, valid = score.gather(1, order), view.valid.gather(1, order)
        total = (score / score.sum(1, keepdim=True).clamp(min=1e-12)).cumsum(1)
        lowest = torch.where(valid, total, 2.0).amin(1, keepdim=True)
        scaled = (total - lowest) / (total[:, -1:] - lowest).clamp(min=1e-12)
        scaled = torch.where(valid, scaled, -1.0)
        start = torch.where(scaled > 0, scaled, 1.0).amin(1, keepdim=True)
        # A token is nearest to the points between the middles to its neighbours, which need not be listed.
        last = max(_FEWEST, round(self.n * self.threshold / max(1 - self.threshold, 1 / _MOST))) - 1
        middle = (scaled[:, 1:] + scaled[:, :-1]) / 2
        point = ((middle - start) / (1 - start).clamp(min=1e-12) * last).clamp(-1, last).floor()
        end = torch.full_like(start, last)
        hit = torch.cat([point, end], dim=1) > torch.cat([torch.full_like(end, -1), point], dim=1)
        return torch.zeros_like(order).scatter(1, order, hit.long())

    def _benchmark(self, view: View) -> Tensor:
        """As `_published`."""
        a = view.attention
        assert a is not None
        row = row_of_heads(a.q[:, :, :1].float() * a.scale, a.k.float(), a.bias)[..., view.num_prefix :]
        score = (row * torch.linalg.vector_norm(view.values.float(), dim=-1)).sum(1)
        total = (score / (score.sum(1, keepdim=True) + 1e-6)).cumsum(1)
        stage = 1 + (len(view.history.reductions) if view.history else 0)
        k = max(1, int(self.n * self.threshold**stage)) + 1
        points = torch.arange(1 / (2 * k), (2 * k - 1) / (2 * k), 1 / k, device=score.device)
        index = (total.unsqueeze(1) - points.unsqueeze(1)).abs().argmin(-1)  # the first one wins a tie
        return torch.zeros_like(view.size, dtype=torch.long).scatter(1, index, 1)
