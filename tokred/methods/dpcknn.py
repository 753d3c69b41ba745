"""DPC-KNN: density peaks clustering with k nearest neighbours."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tokred.core.ops import nearest_before, nearest_center, smallest
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("dpcknn", paper="Du et al., 2016; Zeng et al., CVPR 2022, arXiv:2204.08680")
class DPCKNN(Reducer):
    """Average the tokens around density peaks: tokens that are dense and far from denser ones.

    The form of the TokenReduction benchmark: distances are divided by sqrt(C), the density is exp(-mean
    squared distance to the nearest tokens, itself included), a token's score is its density times its
    distance to the nearest denser token, and the tokens with the highest scores are the centres. Clusters are
    averaged.
    Cost: N² C.

    Args:
        neighbors: nearest tokens that make up the density.
        scale: "published", in which the density falls as exp(-d^2 / C): where tokens are far apart it
            vanishes, and isolated tokens are never centres. "relative" measures distances in units of their
            root mean square over the image.
        ties: between equal densities the lower "index" is denser, or "noise" below 1e-6 decides, as in the
            published code.
        weights: token weights in the cluster's mean: "equal", or "learned", exp(u·x + c) with fitted u and c,
            as published methods train it. At the start of a fit they are nearly equal.
    """

    groups = ("core", "merging", "training-free")
    site = "pre"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        neighbors: int = 5,
        scale: Literal["published", "relative"] = "published",
        ties: Literal["index", "noise"] = "index",
        weights: Literal["equal", "learned"] = "equal",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if neighbors < 1:
            raise TokredError(f"dpcknn.neighbors must be at least 1, got {neighbors}.")
        self.neighbors, self.scale, self.ties = neighbors, scale, ties
        self.score = nn.Linear(dim, 1) if weights == "learned" else None
        if self.score is not None:
            nn.init.trunc_normal_(self.score.weight, std=0.02)
            nn.init.zeros_(self.score.bias)

    def check_first(self) -> None:
        if self.neighbors > self.n:
            raise TokredError(
                f"dpcknn.neighbors must be at most {self.n}, the tokens of the first stage, "
                f"got {self.neighbors}."
            )

    def forward(self, view: View) -> Merge:
        distance = view.distance  # [B, n, n]
        unit = self.dim**0.5
        if self.scale != "published":
            unit = distance.square().mean((1, 2)).sqrt().clamp(min=1e-12).unsqueeze(-1)
        nearest = smallest(distance, self.n, min(self.neighbors, self.n))  # [B, n, neighbors]
        row_unit = unit if self.scale == "published" else unit.unsqueeze(-1)
        density = torch.exp(-(nearest / row_unit).square().mean(-1))  # [B, n]
        if self.ties == "noise":
            density = density + 1e-6 * view.rng.uniform(view.x)
        rank = self._rank(density)  # [B, n], 0 for the densest
        separation = nearest_before(distance, rank)
        # The densest token has no denser one.
        separation = torch.where(rank == 0, distance.amax((1, 2)).unsqueeze(-1), separation)
        order = (density * (separation / unit)).argsort(dim=1, descending=True, stable=True)
        center = order[:, : self.keep]
        label = nearest_center(distance, center)
        slots = torch.arange(self.keep, device=center.device).expand_as(center)
        label = label.scatter(1, center, slots)  # a centre belongs to its own cluster, even beside a twin
        return Merge(label, self.keep, weight=None if self.score is None else self._weight(view.x.float()))

    @staticmethod
    def _rank(density: Tensor) -> Tensor:
        """Rank of each token by density, [B, n] float32, 0 for the densest; ties go to the lower index."""
        order = density.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(density.shape[1], device=density.device, dtype=torch.float32).expand_as(density)
        return torch.zeros_like(density).scatter(1, order, place)

    def _weight(self, x: Tensor) -> Tensor:
        """exp(score), [B, n], up to a factor that cancels in every mean and keeps the exponential finite."""
        assert self.score is not None
        score = self.score(x).squeeze(-1)
        return torch.exp((score - score.amax(1, keepdim=True).detach()).clamp(min=-60))
