"""Widen a trained ViT without changing its output, so that a wide model need not be trained from scratch.

After Chen et al., ICLR 2016, "Net2Net". Every channel and head is repeated; a LayerNorm over repeated
channels gives repeated results, and a linear layer that reads repeated channels divides its weights among
them. The shares differ at random, and these differences cancel in sum, so that the copies diverge in
training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokred.errors import TokredError

_NOISE = 0.5  # deviation from equal shares, relative to the standard deviation of the layer's weights


@torch.no_grad()
def widen(small: Any, large: Any, rng: torch.Generator) -> None:
    """Give `large` weights with which it computes the same logits as `small`.

    Args:
        small: the trained model.
        large: a model of the same depth, patch and head width, with a whole multiple of the channels.
        rng: generator of the shares of repeated channels.

    Raises:
        TokredError: the models do not have such shapes.
    """
    times, rest = divmod(large.embed_dim, small.embed_dim)
    if rest or _shape(small) != _shape(large):
        raise TokredError(
            f"A model of width {small.embed_dim} and depth {len(small.blocks)} cannot be widened to one of "
            f"width {large.embed_dim} and depth {len(large.blocks)}: depth, patch and head width must agree, "
            "and the width must be a multiple, as from deit_t to deit_s."
        )
    source, target = small.state_dict(), large.state_dict()
    large.load_state_dict(
        {key: _widened(key, source[key], value, times, rng) for key, value in target.items()}
    )


def _shape(model: Any) -> tuple[Any, ...]:
    """What both models must have in common."""
    patch, block = model.patch_embed.patch_size, model.blocks[0]
    return len(model.blocks), patch, block.attn.head_dim, model.pos_embed.shape[1]


def _widened(key: str, value: Tensor, target: Tensor, times: int, rng: torch.Generator) -> Tensor:
    if value.shape == target.shape:
        return value
    if key.endswith(("qkv.weight", "qkv.bias")):  # queries, keys and values are repeated separately
        parts = [
            _widened(key.replace("qkv", "part"), part, goal, times, rng)
            for part, goal in zip(value.chunk(3), target.chunk(3), strict=True)
        ]
        return torch.cat(parts)
    repeats_input = value.ndim == 2 and target.shape[1] == times * value.shape[1]
    if not repeats_input:  # a vector of channels, or weights that read pixels
        dims = [goal // length for goal, length in zip(target.shape, value.shape, strict=True)]
        return value.repeat(dims)
    rows = value.repeat(target.shape[0] // value.shape[0], 1)
    shares = _NOISE * value.std() * torch.randn(times, *rows.shape, generator=rng)
    shares = rows / times + shares - shares.mean(0)
    return torch.cat(list(shares), dim=1)
