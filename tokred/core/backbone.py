"""timm's Vision Transformers: which of them tokred can reduce, and how their parts are called one by one.

This is the only file that knows a class of timm by name.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionPoolLatent, AttentionRope, PatchEmbed
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from tokred.core.attention import call_attention, stand_in
from tokred.core.embedding import embed_patches
from tokred.core.reducer import Attention
from tokred.core.rotation import Rotation
from tokred.errors import UnsupportedModel

_FAMILIES: dict[Any, tuple[Any, Any]] = {
    VisionTransformer: (Block, (TimmAttention,)),
    Eva: (EvaBlock, (EvaAttention, AttentionRope)),
}
"""The models that tokred reduces, with the block and the attention that they may be built from."""

_POOLS = ("token", "avg", "max", "avgmax", "map")


def check_supported(model: Any) -> None:
    """Raise `UnsupportedModel` for a model that `ReducedViT` would run wrongly."""
    name, kind = type(model).__name__, type(model)
    family = next((family for family in _FAMILIES if isinstance(model, family)), None)
    if family is None or kind.forward_features is not family.forward_features:
        raise UnsupportedModel(
            f"{name} is not a standard timm VisionTransformer or Eva, which make tokens of patches and let "
            "every layer see all of them; choose a model such as deit_s."
        )
    if type(model.patch_embed) is not PatchEmbed:
        raise UnsupportedModel(
            f"{name} makes its tokens by {type(model.patch_embed).__name__}; tokred knows timm's PatchEmbed."
        )
    standard_block, standard_attention = _FAMILIES[family]
    for block in model.blocks:
        if type(block) is not standard_block:
            raise UnsupportedModel(
                f"{name} is built from {type(block).__name__}, but tokred supports timm's standard "
                f"{standard_block.__name__} only."
            )
        if type(block.attn) not in standard_attention:
            raise UnsupportedModel(
                f"{name} uses {type(block.attn).__name__}, but tokred supports timm's standard Attention "
                "only."
            )
        if getattr(block.attn, "num_kv_groups", 1) > 1:
            raise UnsupportedModel(
                f"{name} shares keys between the heads of a layer, but methods expect keys of each head."
            )
    pools_alone = model.attn_pool is None or type(model.attn_pool) is AttentionPoolLatent
    if not pools_alone or model.global_pool not in _POOLS:
        raise UnsupportedModel(
            f"{name} pools by {model.global_pool or 'nothing'!r}; tokred supports pooling by "
            f"{', '.join(_POOLS[:-1])} and {_POOLS[-1]}."
        )


def check_pool(pool: str | None) -> None:
    """Raise `UnsupportedModel` for a pooling in which sizes cannot count; none, "", makes an encoder."""
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


def grid(model: Any, x: Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of images [B, channels, H, W]."""
    rows, columns = model.patch_embed.dynamic_feat_size(x.shape[-2:])
    return int(rows), int(columns)


def embed(model: Any, x: Tensor) -> tuple[Tensor, Rotation | None]:
    """The tokens that enter layer 1, [B, P + N, C], of images [B, channels, H, W], and their rotation."""
    patches = embed_patches(model.patch_embed, x)
    if not hasattr(model, "rope"):
        return model.norm_pre(model.patch_drop(model._pos_embed(patches))), None
    tokens, table = model._pos_embed(patches)
    return model.norm_pre(tokens), None if table is None else Rotation(table, grid(model, x)[1])


def drops_patches(model: Any) -> bool:
    """Whether the model drops random patches, as some do in training."""
    return bool(model.training and getattr(model.patch_drop, "prob", 0) > 0)


def attend(
    block: Any,
    x: Tensor,
    bias: Tensor | None = None,
    alive: Tensor | None = None,
    record: bool = False,
    rotation: Tensor | None = None,
) -> tuple[Tensor, Attention | None]:
    """The tokens after the attention of a layer, and what entered its scores; see `call_attention`."""
    y, attention = call_attention(block.attn, block.norm1(x), bias, alive, record, rotation)
    return x + block.drop_path1(_scaled(block, 1, y)), attention


def mlp(block: Any, x: Tensor) -> Tensor:
    """The tokens after the MLP of a layer."""
    y: Tensor = x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))
    return y


def _scaled(block: Any, branch: int, y: Tensor) -> Tensor:
    """LayerScale, a module of a `Block` and a parameter of an `EvaBlock`, or None."""
    if hasattr(block, f"ls{branch}"):
        return getattr(block, f"ls{branch}")(y)
    gamma = getattr(block, f"gamma_{branch}")
    return y if gamma is None else gamma * y


def pools_patches(model: Any) -> bool:
    """Whether the head pools patch tokens, so that their sizes count."""
    return model.global_pool not in ("", "token")


def pools_prefix(model: Any) -> bool:
    """Whether prefix tokens are pooled as well, as by the attention pool of an `Eva`."""
    return bool(getattr(model, "pool_include_prefix", model.attn_pool is not None))


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
    if pools_prefix(model):
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
