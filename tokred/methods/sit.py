"""SiT: token slimming by a small network."""

from __future__ import annotations

import torch
from torch import nn

from tokred.core.ops import kmeans
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Mix
from tokred.core.registry import register

_SHARPNESS = 250.0  # of a fit's initial scores, which are inner products in units of the mean squared hidden


@register("sit", paper="Zong et al., ECCV 2022, arXiv:2111.12624")
class SiT(Reducer):
    """Mix the tokens by weights that a two-layer network predicts from each of them.

    Scores are Linear(GELU(Linear(LayerNorm(x)))), from C to C/2 to `keep` channels. Weights are their softmax
    over the tokens, with a learned temperature, so the outputs are convex combinations of the tokens. As in
    the TokenReduction benchmark, there is no reverse module. At random initial values all scores are near
    zero, and every output is nearly the mean token.
    Cost: N C (C + M) / 2 for the network and M N C for the mixture.
    """

    groups = ("core", "merging", "learned")
    site = "pre"
    nested = ("score.weight", "score.bias")

    def __init__(self, n: int, keep: int, dim: int, heads: int) -> None:
        super().__init__(n, keep, dim, heads)
        hidden = dim // 2
        self.norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.score = nn.Linear(hidden, keep)
        self.scale = nn.Parameter(torch.ones(1))
        for layer in (self.hidden, self.score):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, view: View) -> Mix:
        hidden = self.act(self.hidden(self.norm(view.x.float())))  # [B, n, C/2]
        weight, bias = self.scale * self.score.weight[: self.keep], self.scale * self.score.bias[: self.keep]
        scores = torch.matmul(weight, hidden.mT) + bias.unsqueeze(-1)  # [B, keep, n]
        return Mix(scores.softmax(-1))

    def calibrate(self, view: View) -> None:
        """Scores that are high near the centres that k-means finds in the hidden layer."""
        hidden = self.act(self.hidden(self.norm(view.x.float()))).flatten(0, 1)
        hidden = hidden - hidden.mean(0)
        sharpness = _SHARPNESS / hidden.square().sum(1).mean().clamp(min=1e-12)
        self.score.weight.copy_(sharpness * kmeans(hidden, len(self.score.weight)))
