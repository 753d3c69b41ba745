"""The scale of the residual stream of a pre-norm ViT, which only methods that measure distances notice."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def scale_residual(model: Any, factor: float) -> None:
    """Multiply the residual stream of a ViT by a factor, in place. The function of the model stays as it is.

    What is added to the stream is multiplied: the embeddings of patches, positions and the CLS token, and the
    outputs of every attention and MLP. Every reader of the stream normalises it first, so the logits change
    only by rounding and by the epsilon of the LayerNorms, which is added to a variance that `factor` squared
    has multiplied. A power of two rounds nothing.

    Args:
        model: a plain pre-norm ViT of timm, without LayerScale.
        factor: the number to multiply by.
    """
    patches = model.patch_embed.proj
    scaled = [patches.weight, patches.bias, model.pos_embed, model.cls_token]
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            scaled += [layer.weight, layer.bias]
    for parameter in scaled:
        if parameter is not None:
            parameter.mul_(factor)
