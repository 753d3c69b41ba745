"""Widen a trained ViT without changing what it computes, so that a wide model does not start from nothing.

After Chen et al., ICLR 2016, "Net2Net". Every channel and head is repeated; a LayerNorm over repeated
channels gives repeated results, and a linear layer that reads repeated channels shares its weights out
among them. The shares differ at random, and these differences cancel, so the copies drift apart only in
training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokred.errors import TokredError


@torch.no_grad()
def widen(small: Any, large: Any, rng: torch.Generator, noise: float = 0.5) -> None:
    """Give `large` weights with which it computes the same logits as `small`.

    Args:
        small: The trained model.
        large: A model of the same depth, patch and head width, with a whole multiple of the channels.
        rng: Draws the shares of repeated channels.
        noise: Deviation from equal shares, in units of the layer's own standard deviation.

    Raises:
        TokredError: the shapes do not allow it.
    """
    times, rest = divmod(large.embed_dim, small.embed_dim)
    same = all(
        [
            len(small.blocks) == len(large.blocks),
            small.patch_embed.patch_size == large.patch_embed.patch_size,
            small.blocks[0].attn.head_dim == large.blocks[0].attn.head_dim,
            small.pos_embed.shape[1] == large.pos_embed.shape[1],
        ]
    )
    if rest or not same:
        raise TokredError(
            f"A model of width {small.embed_dim} and depth {len(small.blocks)} cannot be widened to "
            "one of width "
            f"{large.embed_dim} and depth {len(large.blocks)}: depth, patch and head width must agree "
            "and the width "
            "be a multiple, as from deit_t to deit_s."
        )
    source = small.state_dict()
    large.load_state_dict(
        {
            key: _widened(key, source[key], value, times, rng, noise)
            for key, value in large.state_dict().items()
        }
    )


def _widened(
    key: str, value: Tensor, target: Tensor, times: int, rng: torch.Generator, noise: float
) -> Tensor:
    if value.shape == target.shape:
        return value
    if key.endswith(("qkv.weight", "qkv.bias")):  # queries, keys and values each repeat on their own
        parts = [
            _widened(key.replace("qkv", "part"), part, goal, times, rng, noise)
            for part, goal in zip(value.chunk(3), target.chunk(3), strict=True)
        ]
        return torch.cat(parts)
    repeats_input = value.ndim == 2 and target.shape[1] == times * value.shape[1]
    if not repeats_input:  # a vector of channels, or weights that read pixels
        dims = [goal // length for goal, length in zip(target.shape, value.shape, strict=True)]
        return value.repeat(dims)
    rows = value.repeat(target.shape[0] // value.shape[0], 1)
    shares = noise * value.std() * torch.randn(times, *rows.shape, generator=rng)
    shares = rows / times + shares - shares.mean(0)
    return torch.cat(list(shares), dim=1)
