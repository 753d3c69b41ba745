"""DTEM: ToMe's matching on a learned metric."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokred.core.ops import alternate, bipartite_labels, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge, Mix, Reduction
from tokred.core.registry import register

_TEMPERATURE = 0.1  # of cosines, in training


@register("dtem", paper="Lee and Hong, NeurIPS 2024, arXiv:2412.10569")
class DTEM(Reducer):
    """Match tokens as ToMe does, by a learned linear metric of the normalised tokens in place of the keys.

    The decoupled embedding of the paper: a linear map of the normalised tokens, with no gradient to them, to
    as many channels as a head has, 64 in DeiT. At inference the sequence alternates between sets A and B, the
    best matches of A join B, and groups become means weighted by size. A fit starts from the linear map that
    comes nearest to ToMe's keys.

    Differences from the paper: the metric sees the tokens that are merged, after the attention of their
    layer, not those that entered it. In training, tokens are merged as at inference, and gradients are those
    of a soft merge: each token of A joins all of B by softmax shares, multiplied by a sigmoid that separates
    the chosen matches from the others. The paper instead continues with all tokens and soft sizes.
    Cost: N C d for the metric and N²/4 d.

    Args:
        proportional: add log(size) to later attention scores.
    """

    groups = ("merging", "learned")
    stages = "all"
    knob = "removed"

    def __init__(self, n: int, keep: int, dim: int, heads: int, *, proportional: bool = True) -> None:
        super().__init__(n, keep, dim, heads)
        self.proportional = proportional
        self.metric = nn.Linear(dim, dim // heads)

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Reduction:
        tokens = unit_rows(self.metric(self._normalized(view)))  # [B, n, d]
        a, b = alternate(view.num_prefix)
        label = bipartite_labels(tokens.detach(), a, b, self.n - self.keep)
        merge = Merge(label, self.keep, weight=view.size)
        if not self.training:
            return merge
        hard = merge.matrix()
        soft = self._softened(tokens, a, b, view.size)
        unmerged = hard[:, : self.keep - soft.shape[1]]
        return Mix(torch.cat([unmerged, hard[:, unmerged.shape[1] :] + (soft - soft.detach())], dim=1))

    def calibrate(self, view: View) -> None:
        """The metric that comes nearest to the keys."""
        x, keys = self._normalized(view).flatten(0, 1), view.key_metric.flatten(0, 1)
        center = x.mean(0)
        ridge = 1e-3 * torch.eye(self.dim, device=x.device)
        covariance = (x - center).mT @ (x - center) / len(x) + ridge
        weight = torch.linalg.solve(covariance, (x - center).mT @ (keys - keys.mean(0)) / len(x))
        self.metric.weight.copy_(weight.mT)
        self.metric.bias.copy_(keys.mean(0) - center @ weight)

    def _normalized(self, view: View) -> Tensor:
        return F.layer_norm(view.x.detach().float(), (self.dim,), eps=1e-12)

    def _softened(self, tokens: Tensor, a: slice, b: slice, size: Tensor) -> Tensor:
        """Weights [B, |B|, n] of all tokens in the means that the tokens of B become in a soft merge."""
        removed = self.n - self.keep
        similarity = torch.matmul(tokens[:, a], tokens[:, b].mT)  # [B, |A|, |B|]
        best = similarity.amax(-1)
        ranked = best.detach().sort(dim=1, descending=True).values
        last = ranked[:, removed - 1 : removed + 1].mean(1, keepdim=True)  # between the last one and the next
        chosen = torch.sigmoid((best - last) / _TEMPERATURE)
        share = (similarity / _TEMPERATURE).softmax(-1) * (chosen * size[:, a]).unsqueeze(-1)
        weight = torch.empty_like(size).unsqueeze(1).repeat(1, similarity.shape[2], 1)
        weight[:, :, a] = share.mT
        weight[:, :, b] = torch.diag_embed(size[:, b])
        return weight / weight.sum(-1, keepdim=True)
