"""What is kept of the similarities of any number of images: exact counts and sums, no pair."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.studies.similarity.pairs import Pairs

BINS = 2000  # of the histograms, over [-1, 1]
EDGES = np.linspace(-1, 1, BINS + 1)
HALF = 0.5  # the score above which the paper calls tokens similar
POWERS = 4  # sums of the similarities' powers up to this one: mean, spread, skew and kurtosis
_TOGETHER = 2**26  # similarities in memory at once


class Tally:
    """Similarities of tokens at some layers, summed up by kind of pair.

    Args:
        pairs: which pairs there are.
        layers: how many layers are looked at.
        images: how many images there may be.
        device: of the tokens.

    Attributes:
        counts: [layers, kinds, BINS] int64, pairs by similarity; a bin has its lower edge and not its upper one, the last has both.
        above: [layers, kinds] int64, pairs more similar than one half.
        sums: [layers, kinds, POWERS] float64, sums of the similarities and of their powers.
        means: [layers, kinds, images] float64, mean similarity within each image; NaN for one that was not added.
        near: [layers, rows * columns] float64, sums over ordered pairs by how many rows and columns they lie apart.
    """

    def __init__(self, pairs: Pairs, layers: int, images: int, device: torch.device | None = None) -> None:
        self.pairs, kinds = pairs, len(pairs.kinds)
        self.counts = torch.zeros(layers, kinds, BINS, dtype=torch.int64, device=device)
        self.above = torch.zeros(layers, kinds, dtype=torch.int64, device=device)
        self.sums = torch.zeros(layers, kinds, POWERS, dtype=torch.float64, device=device)
        self.means = torch.full((layers, kinds, images), torch.nan, dtype=torch.float64, device=device)
        self.near = torch.zeros(layers, pairs.tokens, dtype=torch.float64, device=device)
        self._flat = [(first * pairs.tokens + second).to(device) for first, second in pairs.kinds.values()]
        self._apart = pairs.apart.to(device)

    def add(self, layer: int, images: Tensor, tokens: Tensor) -> None:
        """Add some images at one layer.

        Args:
            layer: zero-based place among the layers that are looked at.
            images: [B] int64, their numbers.
            tokens: [B, N, C] patch tokens in raster order, of any floating type.
        """
        together = max(1, _TOGETHER // self.pairs.tokens**2)
        for part, numbers in zip(tokens.split(together), images.split(together), strict=True):
            flat = cosine(part).flatten(1)
            for kind, index in enumerate(self._flat):
                self._add(layer, kind, numbers, flat[:, index])
            self.near[layer].index_add_(0, self._apart, flat.sum(0, dtype=torch.float64))

    def cpu(self) -> Tally:
        """The same with everything in main memory, where NumPy reads it."""
        for name in ("counts", "above", "sums", "means", "near"):
            setattr(self, name, getattr(self, name).cpu())
        return self

    def _add(self, layer: int, kind: int, images: Tensor, similarity: Tensor) -> None:
        wide = similarity.double()
        self.means[layer, kind, images] = wide.mean(1)
        self.above[layer, kind] += (similarity > HALF).sum()
        power = wide
        for exponent in range(POWERS):
            self.sums[layer, kind, exponent] += power.sum()
            power = power * wide if exponent + 1 < POWERS else power
        bins = ((wide + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        self.counts[layer, kind] += torch.bincount(bins.flatten(), minlength=BINS)


def cosine(tokens: Tensor) -> Tensor:
    """Cosine similarity of any two tokens of an image, [B, N, N] float32, of [B, N, C]."""
    unit = F.normalize(tokens.float(), dim=-1)
    return (unit @ unit.mT).clamp(-1, 1)
