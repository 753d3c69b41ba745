"""Initial weights from which a small ViT learns quickly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def sincos_position(grid: int, dim: int) -> Tensor:
    """Fixed two-dimensional sine-cosine position embedding, [grid * grid, dim] (as in MoCo v3)."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def initialize(model: Any, rng: torch.Generator) -> None:
    """Draw initial weights: sine-cosine positions, attention products near the identity, else as in timm."""
    dim, grid = model.embed_dim, model.patch_embed.grid_size[0]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=rng))
            if module.bias is not None:
                module.bias.zero_()
    model.cls_token.copy_(1e-6 * torch.randn(model.cls_token.shape, generator=rng))
    model.pos_embed[:, : -grid * grid].zero_()
    model.pos_embed[:, -grid * grid :].copy_(0.1 * sincos_position(grid, dim))
    patches = model.patch_embed.proj.weight
    patches.copy_(patches[0].numel() ** -0.5 * torch.randn(patches.shape, generator=rng))
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        q.copy_(torch.randn(q.shape, generator=rng) * dim**-0.5)
        k.copy_(0.7 * q + 0.7 * torch.randn(k.shape, generator=rng) * dim**-0.5)
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=rng))[0]
        v.copy_(0.6 * basis + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
        block.attn.proj.weight.copy_(0.6 * basis.T + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
