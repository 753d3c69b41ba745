"""Similarities over any number of images, accumulated as exact counts and sums."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.studies.similarity.pairs import Pairs

BINS = 2000  # bins of the histograms, over [-1, 1]
EDGES = np.linspace(-1, 1, BINS + 1)
POWERS = 4  # for mean, spread, skew and kurtosis
_CHUNK = 2**26  # similarities in memory at once
_TENSORS = ("counts", "sums", "means", "near")


class Accumulator:
    """Similarities of tokens at some layers, accumulated by kind of pair.

    Args:
        pairs: the pairs to compare.
        layers: number of layers.
        images: number of images in the data.
        device: device of the tokens.

    Attributes:
        counts: [layers, kinds, BINS] int64 histogram; a bin excludes its upper edge, except the last.
        sums: [layers, kinds, POWERS] float64, sums of the first four powers of the similarities.
        means: [layers, kinds, images] float64, mean within each image; NaN until it is added.
        near: [layers, rows * columns] float64, sums over ordered pairs by their offset (`Pairs.apart`).
    """

    def __init__(self, pairs: Pairs, layers: int, images: int, device: torch.device | None = None) -> None:
        self.pairs, kinds = pairs, len(pairs.kinds)
        self.counts = torch.zeros(layers, kinds, BINS, dtype=torch.int64, device=device)
        self.sums = torch.zeros(layers, kinds, POWERS, dtype=torch.float64, device=device)
        self.means = torch.full((layers, kinds, images), torch.nan, dtype=torch.float64, device=device)
        self.near = torch.zeros(layers, pairs.tokens, dtype=torch.float64, device=device)
        self._flat = [(first * pairs.tokens + second).to(device) for first, second in pairs.kinds.values()]
        self._apart = pairs.apart.to(device)

    def add(self, layer: int, images: Tensor, tokens: Tensor) -> None:
        """Add images at one layer.

        Args:
            layer: zero-based index among the layers of this accumulator.
            images: [B] int64 image indices.
            tokens: [B, N, C] patch tokens in raster order, of any floating type.
        """
        chunk = max(1, _CHUNK // self.pairs.tokens**2)
        for part, index in zip(tokens.split(chunk), images.split(chunk), strict=True):
            flat = cosine(part).flatten(1)
            for kind, positions in enumerate(self._flat):
                self._add(layer, kind, index, flat[:, positions])
            self.near[layer].index_add_(0, self._apart, flat.sum(0, dtype=torch.float64))

    def cpu(self) -> Accumulator:
        """Move all tensors to main memory."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).cpu())
        return self

    def _add(self, layer: int, kind: int, images: Tensor, similarity: Tensor) -> None:
        values = similarity.double()
        self.means[layer, kind, images] = values.mean(1)
        for exponent in range(POWERS):
            self.sums[layer, kind, exponent] += (values ** (exponent + 1)).sum()
        bins = ((values + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        self.counts[layer, kind] += torch.bincount(bins.flatten(), minlength=BINS)


def cosine(tokens: Tensor) -> Tensor:
    """Cosine similarity of all pairs of tokens of each image, [B, N, N] float32, from [B, N, C]."""
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float(), dim=-1)
        return (unit @ unit.mT).clamp(-1, 1)
