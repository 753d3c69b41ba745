"""PatchMerger: learned queries pick what each output token is made of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tokred.core.ops import kmeans
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Mix
from tokred.core.registry import register

_SHARPNESS = 600.0  # of a fit's initial scores, which are inner products in units of the mean squared token


@register("patchmerger", paper="Renggli et al., 2022, arXiv:2202.12015")
class PatchMerger(Reducer):
    """Mix the normalised tokens by their inner products with learned queries.

    The weights are softmax(queries · LayerNorm(x)ᵀ) over the tokens, and the outputs are mixtures of the
    normalised tokens, as in the TokenReduction benchmark. They are in the order of the queries.
    Cost: 2 M N C.

    Args:
        scale: factor on the inner products: "none" (published), where queries drawn from N(0, 1) select
            almost single tokens, or "sqrt", 1 / sqrt(C), as attention has it.
        value: what is mixed: the "normalized" tokens (published), which do not have the scale of the residual
            stream, or the "tokens" themselves.
    """

    groups = ("core", "merging", "learned")
    site = "pre"
    nested = ("queries",)

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        scale: Literal["none", "sqrt"] = "none",
        value: Literal["normalized", "tokens"] = "normalized",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.scale = dim**-0.5 if scale == "sqrt" else 1.0
        self.value = value
        self.queries = nn.Parameter(torch.randn(keep, dim))
        self.norm = nn.LayerNorm(dim)  # its own epsilon, 1e-5, not the backbone's

    def forward(self, view: View) -> Mix:
        normalized = self.norm(view.x.float())  # [B, n, C]
        scores = torch.matmul(self.queries[: self.keep] * self.scale, normalized.mT)  # [B, keep, n]
        return Mix(scores.softmax(-1), normalized if self.value == "normalized" else None)

    def calibrate(self, view: View) -> None:
        """Fit the normalisation to reproduce the tokens; put the queries where k-means puts their centres."""
        x = view.x.float()
        plain = nn.functional.layer_norm(x, (self.dim,))
        center, spread = x.mean((0, 1)), plain - plain.mean((0, 1))
        slope = (spread * (x - center)).mean((0, 1)) / spread.square().mean((0, 1)).clamp(min=1e-6)
        self.norm.weight.copy_(slope)
        self.norm.bias.copy_(center - slope * plain.mean((0, 1)))
        normalized = self.norm(x).flatten(0, 1)
        normalized = normalized - normalized.mean(0)
        sharpness = _SHARPNESS / (self.scale * normalized.square().sum(1).mean().clamp(min=1e-6))
        self.queries.copy_(sharpness * kmeans(normalized, len(self.queries)))
