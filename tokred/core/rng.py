"""Random numbers that depend on what they are for, and on nothing that was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokred.errors import TokredError
from tokred.utils.numbers import whole

_TOO_LARGE = 2**62


@dataclass
class Rng:
    """Random numbers as a function of seed, layer, image and position, the same on every device.

    >>> x = torch.zeros(2, 3, 8)
    >>> Rng(seed=1).uniform(x).shape
    torch.Size([2, 3])
    >>> keys = torch.tensor([7, 8])
    >>> torch.equal(Rng(1, keys).uniform(x)[1], Rng(1, keys[1:]).uniform(x[1:])[0])
    True

    Args:
        seed: the seed of the run.
        images: [B] int64, a key for every image. Without keys all images of a batch draw the same numbers.
        layer: the layer of the stage that draws.
    """

    seed: int = 0
    images: Tensor | None = None
    layer: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) for every token of `like` [B, N, ...], as [B, N] float32."""
        batch, n = like.shape[:2]
        position = torch.arange(n, device=like.device)
        image = (
            torch.zeros(batch, dtype=torch.long, device=like.device)
            if self.images is None
            else self.images.to(like.device)
        )
        state = _scramble(_scramble(image + 0x9E3779B9 * (self.seed + 1)) + self.layer)
        return (_scramble(state.unsqueeze(1) + position) >> 8).float() / 2**24


def _scramble(x: Tensor) -> Tensor:
    """A 32-bit integer hash (two rounds of xor-shift and multiply) in int64 arithmetic."""
    for multiplier in (0x7FEB352D, 0x6C50B47D):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * multiplier) & 0xFFFFFFFF
    return x ^ (x >> 15)


def check_seed(seed: Any) -> int:
    """The seed as an int; a `TokredError` if it is no whole number or needs more than 62 bits."""
    try:
        number = whole(seed)
    except TypeError:
        number = _TOO_LARGE
    if abs(number) >= _TOO_LARGE:
        raise TokredError(f"A seed is a whole number below 2^62, such as 0; got {seed!r}.")
    return number


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global random numbers inside the context, and restore their state afterwards.

    >>> with seeded(0):
    ...     first = torch.rand(2)
    >>> with seeded(0):
    ...     print(torch.equal(first, torch.rand(2)))
    True
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
