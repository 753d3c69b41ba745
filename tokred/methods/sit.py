"""SiT: token slimming by a small network."""

from __future__ import annotations

import torch
from torch import nn

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Mix
from tokred.core.registry import register


@register("sit", paper="Zong et al., ECCV 2022, arXiv:2111.12624")
class SiT(Reducer):
    """Mix the tokens by weights that a two-layer network predicts from each of them.

    Scores are Linear(GELU(Linear(LayerNorm(x)))), C to C/2 to keep, softmax over the tokens after a learned
    temperature; the outputs are convex combinations of the tokens. As in the TokenReduction benchmark there
    is no reverse module. At the start all scores are near zero and every output is nearly the mean token.
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
        scores = torch.matmul(weight, hidden.mT) + bias.unsqueeze(
            -1
        )  # [B, keep, n], ready for a softmax over rows
        return Mix(scores.softmax(-1))

    def calibrate(self, view: View) -> None:
        """Scores that differ between the outputs, with a deviation of 2 over the tokens."""
        hidden = self.act(self.hidden(self.norm(view.x.float())))
        deviation = hidden.flatten(0, 1).var(0).sum().sqrt()
        self.score.weight.copy_(torch.randn(self.score.weight.shape))  # on the CPU: the same on every device
        self.score.weight.mul_(2.0 / deviation.clamp(min=1e-6))
