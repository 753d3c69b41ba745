"""DynamicViT: a learned predictor says which tokens stay."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Keep, Mask, Reduction
from tokred.core.registry import register

_TINY = 1e-6


@register("dynamicvit", paper="Rao et al., NeurIPS 2021, arXiv:2106.02034")
class DynamicViT(Reducer):
    """Keep the tokens that a small network, trained with Gumbel-softmax masks, scores highest.

    The predictor sees each token and the mean of all remaining tokens. In training no token is removed: a
    hard, straight-through sample masks the dropped ones out of attention, and a penalty pulls the fraction of
    kept tokens to the keep rate. At inference the `keep` most probable tokens stay, most probable first.

    A fit for any budget draws the keep rate at random, and the predictor does not know it. For its samples,
    log-odds are therefore shifted until the expected fraction of kept tokens is that rate: only the order is
    learned, and inference uses nothing else. Without the shift, the predictor soon keeps all tokens with
    probability 1, and the gradient vanishes.
    Cost: 13/8 N C² for the network.

    Args:
        mean: where 1e-6 is added in the mean of the remaining tokens: to the "quotient", as in the published
            code, which divides by zero if a sample drops every token, or to the "denominator", which was
            probably intended.
    """

    groups = ("core", "pruning", "learned")
    site = "pre"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        mean: Literal["quotient", "denominator"] = "quotient",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.mean = mean
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, view: View) -> Reduction:
        alive = view.alive
        if alive is None:
            alive = torch.ones_like(view.x[..., 0], dtype=torch.float32)  # [B, n]
        log_odds = self._predict(view.x.float(), alive)  # [B, n], of staying
        if self.training and self.any_budget:
            log_odds = _shift(log_odds, alive, self.keep)
        if self.training:
            return Mask(alive * _sample(log_odds, view.rng.uniform(view.x)))
        # In the order of their probabilities, of which a trained predictor has many that round to 1 and would
        # be ties.
        return Keep(log_odds.argsort(dim=1, descending=True, stable=True)[:, : self.keep], self.n)

    def penalty(self, reduction: Reduction) -> Tensor:
        """2 (share of tokens that stay - keep rate)², the mean over images."""
        if not isinstance(reduction, Mask):
            return super().penalty(reduction)
        rate = self.keep / reduction.alive.shape[1]
        return 2.0 * (reduction.alive.mean(1) - rate).square().mean()

    def _predict(self, x: Tensor, alive: Tensor) -> Tensor:
        local, total = self.embed(x).chunk(2, dim=-1)  # [B, n, C/2] each
        total = torch.matmul(alive.unsqueeze(1), total)  # [B, 1, C/2]
        count = alive.sum(1, keepdim=True).unsqueeze(-1)
        mean = total / count + _TINY if self.mean == "quotient" else total / (count + _TINY)
        stay, go = self.score(torch.cat([local, mean.expand_as(local)], dim=-1)).unbind(-1)
        return stay - go


def _shift(log_odds: Tensor, alive: Tensor, keep: int) -> Tensor:
    """Log-odds [B, n] less a number for each image, so that `keep` of its tokens are expected to stay.

    That number follows the log-odds in the gradient as well, so nothing is gained by raising all of them.
    """
    with torch.no_grad():
        low, high = log_odds.amin(1, keepdim=True) - 20, log_odds.amax(1, keepdim=True) + 20
        for _ in range(32):
            middle = (low + high) / 2
            more = (alive * torch.sigmoid(log_odds - middle)).sum(1, keepdim=True) > keep
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        probability = torch.sigmoid(log_odds - high)
        slope = alive * probability * (1 - probability)
        slope = slope / slope.sum(1, keepdim=True).clamp(min=_TINY)
    return log_odds - high - (slope * (log_odds - log_odds.detach())).sum(1, keepdim=True)


def _sample(log_odds: Tensor, uniform: Tensor) -> Tensor:
    """Hard Gumbel-softmax samples of the first of two classes, [B, n], with the soft sample's gradient.

    The difference of two Gumbel variables is logistic, so the log-odds and one uniform number for each token
    are enough.
    """
    uniform = uniform.clamp(2**-25, 1 - 2**-24)
    noise = uniform.log() - (-uniform).log1p()
    soft = torch.sigmoid(log_odds + noise)
    return (soft > 0.5).float() - soft.detach() + soft
