"""DCT: the sequence of tokens, resampled by its low frequencies."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Mix
from tokred.core.registry import register


@register("dct", paper="He et al., Findings of ACL 2023, arXiv:2305.15099")
class DCT(Reducer):
    """Keep the low frequencies of the token sequence, whatever the tokens are.

    The Fourier Transformer of the paper, as OpenToMe applies it to ViTs: a DCT-II along the sequence of patch
    tokens, of which the M lowest coefficients go through an inverse DCT of length M. Both transforms are
    orthonormal; together they are one fixed matrix, computed in closed form. This low-pass filter does not
    look at the tokens; a method that does should beat it. A token's size is distributed over the outputs in
    proportion to the absolute weights, and later attention does not depend on it.

    Difference from the published code: see `scale`.
    Cost: M N C to apply; nothing to decide.

    Args:
        scale: "amplitude" leaves a constant sequence as it is. "published" multiplies it by sqrt(N / M), as
            two orthonormal transforms of different lengths do.
    """

    groups = ("merging", "training-free")
    site = "pre"
    stages = "all"
    knob = "removed"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        scale: Literal["amplitude", "published"] = "amplitude",
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.scale = scale

    @classmethod
    def floor(cls, n: int) -> int:
        return n - n // 2

    def forward(self, view: View) -> Mix:
        weight = low_pass(self.keep, self.n, view.x.device)
        if self.scale == "published":
            weight = weight * math.sqrt(self.n / self.keep)
        return _Signed(weight.float().expand(view.x.shape[0], -1, -1))


class _Signed(Mix):
    """A `Mix` with weights of both signs."""

    def shares(self) -> Tensor:
        return Mix(self.weight.abs()).shares()


def low_pass(m: int, n: int, device: torch.device) -> Tensor:
    """The matrix [m, n] of a DCT of length n and the inverse DCT of its m lowest coefficients; rows sum to 1.

    Entry (i, j) is (1 + 2 Σ cos(k a_i) cos(k b_j)) / n, summed over k = 1 to m - 1, where a_i and b_j are the
    tokens' places from 0 to pi. The product of cosines is the sum of two, whose sums have closed forms.
    """
    after = math.pi / m * (torch.arange(m, dtype=torch.float64, device=device) + 0.5).unsqueeze(1)
    before = math.pi / n * (torch.arange(n, dtype=torch.float64, device=device) + 0.5)
    return (1 + _cosines(after - before, m) + _cosines(after + before, m)) / n


def _cosines(angle: Tensor, m: int) -> Tensor:
    """The sum of cos(k angle) over k = 1 to m - 1."""
    half = torch.sin(angle / 2)
    flat = half.abs() < 1e-9
    return torch.where(flat, m - 1.0, torch.sin((m - 0.5) * angle) / torch.where(flat, 1.0, 2 * half) - 0.5)
