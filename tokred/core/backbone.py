"""timm's Vision Transformers: which of them tokred can reduce, and how their parts are called one by one.

This is the only file that knows a class of timm by name.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tokred.core.attention import call_attention, stand_in
from tokred.core.embedding import embed_patches
from tokred.core.reducer import Attention
from tokred.errors import UnsupportedModel

_POOLS = ("token", "avg", "max", "avgmax", "map")


def check_supported(model: nn.Module) -> None:
    """Refuse, by name, a model that `ReducedViT` would run wrongly.

    Raises:
        UnsupportedModel
    """
    name = type(model).__name__
    if (
        not isinstance(model, VisionTransformer)
        or type(model).forward_features is not VisionTransformer.forward_features
    ):
        raise UnsupportedModel(
            f"{name} is not a standard timm VisionTransformer; tokred reduces ViT and DeiT models, such as "
            "deit_s."
        )
    if type(model.patch_embed) is not PatchEmbed:
        raise UnsupportedModel(
            f"{name} makes its tokens by {type(model.patch_embed).__name__}; tokred knows timm's PatchEmbed."
        )
    for block in model.blocks:
        if type(block) is not Block:
            raise UnsupportedModel(
                f"{name} is built from {type(block).__name__}, but tokred supports timm's standard Block "
                "only."
            )
        if type(block.attn) is not TimmAttention:
            raise UnsupportedModel(
                f"{name} uses {type(block.attn).__name__}, but tokred supports timm's standard Attention "
                "only."
            )
    pools_alone = model.attn_pool is None or type(model.attn_pool) is AttentionPoolLatent
    if not pools_alone or model.global_pool not in _POOLS:
        raise UnsupportedModel(
            f"{name} pools by {model.global_pool or 'nothing'!r}; tokred supports pooling by "
            f"{', '.join(_POOLS[:-1])} and {_POOLS[-1]}."
        )


def check_pool(pool: str | None) -> None:
    """Refuse a pooling that a model is to get later; none at all, "", makes it an encoder.

    Raises:
        UnsupportedModel: tokens cannot count by their sizes in it.
    """
    if pool not in (None, "", *_POOLS):
        raise UnsupportedModel(
            f"tokred pools by {', '.join(map(repr, _POOLS))}, or not at all, not by {pool!r}."
        )


def num_patches(model: Any) -> int:
    """Patch tokens of an image of the model's own size."""
    return int(model.patch_embed.num_patches)


def num_heads(model: Any) -> int:
    """Attention heads of each layer."""
    return int(model.blocks[0].attn.num_heads)


def has_cls(model: Any) -> bool:
    """Whether the first prefix token is a CLS token."""
    return model.cls_token is not None


def blank_image(model: Any) -> Tensor:
    """A black image of the model's size, [1, channels, H, W], with the model's dtype and device."""
    weight: Tensor = model.patch_embed.proj.weight
    return weight.new_zeros(1, weight.shape[1], *model.patch_embed.img_size)


def embed(model: Any, x: Tensor) -> Tensor:
    """The tokens that enter layer 1, [B, P + N, C], of images [B, channels, H, W]."""
    patches = embed_patches(model.patch_embed, x)
    tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(patches)))
    return tokens


def drops_patches(model: Any) -> bool:
    """Whether the model drops random patches, as some do in training."""
    return bool(model.training and getattr(model.patch_drop, "prob", 0) > 0)


def attend(
    block: Any, x: Tensor, bias: Tensor | None = None, alive: Tensor | None = None, record: bool = False
) -> tuple[Tensor, Attention | None]:
    """The tokens after the attention of a layer, and what entered its scores; see `call_attention`."""
    y, attention = call_attention(block.attn, block.norm1(x), bias, alive, record)
    return x + block.drop_path1(block.ls1(y)), attention


def mlp(block: Any, x: Tensor) -> Tensor:
    """The tokens after the MLP of a layer."""
    y: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return y


def pools_patches(model: Any) -> bool:
    """Whether the head pools patch tokens, so that their sizes count."""
    return model.global_pool not in ("", "token")


def classify(model: Any, x: Tensor, size: Tensor | None = None, pre_logits: bool = False) -> Tensor:
    """The head on normalised tokens.

    Args:
        model: the backbone.
        x: [B, P + M, C].
        size: [B, M] patches that each patch token stands for, of which the pool takes account; None while
            all are 1. Tokens of size 0 are left out.
        pre_logits: whether to leave out the classifier.
    """
    if size is not None and pools_patches(model):
        backbone, model = model, stand_in(model)
        model.__dict__["pool"] = lambda x, pool_type=None: _pool(backbone, x, size)
    logits: Tensor = model.forward_head(x, pre_logits=pre_logits)
    return logits


def _pool(model: Any, x: Tensor, size: Tensor) -> Tensor:
    """timm's `pool`, where a token of size s counts as s equal tokens; [B, C]."""
    prefix = model.num_prefix_tokens
    if model.pool_include_prefix:
        size = torch.cat([size.new_ones(size.shape[0], prefix), size], dim=1)
    else:
        x = x[:, prefix:]
    if model.attn_pool is not None:
        pooled: Tensor = model.attn_pool(x, attn_mask=size.log().to(x.dtype)[:, None, None, :])
        return pooled
    weight = size.to(x.dtype).unsqueeze(-1)
    mean = (x * weight).sum(1) / weight.sum(1)
    if model.global_pool == "avg":
        return mean
    largest = torch.where(weight > 0, x, -torch.inf).amax(1)
    return largest if model.global_pool == "max" else 0.5 * (largest + mean)
