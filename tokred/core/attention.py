"""timm's attention, called so that its queries, keys and values can be read and tokens can be masked.

A hook that is registered inside `forward` would do the same, but not survive `torch.compile` and
`torch.export`, nor two threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from tokred.core.reducer import Attention
from tokred.errors import UnsupportedModel

_EPSILON = 1e-6


def call_attention(
    attn: nn.Module,
    x: Tensor,
    bias: Tensor | None = None,
    alive: Tensor | None = None,
    record: bool = False,
    rotation: Tensor | None = None,
) -> tuple[Tensor, Attention | None]:
    """Call an attention module, and tell what entered its scores.

    Args:
        attn: timm's `Attention`, `AttentionRope` or `EvaAttention`, whose parts may have been replaced or
            wrapped.
        x: [B, P + N, C] normalised tokens.
        bias: [B, 1, 1, P + N], added to the scores.
        alive: [B, P + N]; tokens where it is 0 are seen by nobody but themselves.
        record: whether to tell what entered the scores; None is told otherwise.
        rotation: sines and cosines of the rotary embedding of the patch tokens, where the model has one.

    Raises:
        UnsupportedModel: the module has become another one, in which queries and keys cannot be seen.
    """
    rotary = {} if rotation is None else {"rope": rotation}
    if alive is None and not record:
        return attn(x, attn_mask=bias, **rotary), None
    copy = stand_in(attn)
    seen: dict[str, Tensor] = {}
    if alive is not None:
        _mask(copy, alive)
    if record:
        _record(copy, seen, rotation)
        rotary = {}
    output = copy(x, attn_mask=bias, **rotary)
    if not record:
        return output, None
    if not seen.keys() >= {"q", "k", "v"}:
        raise UnsupportedModel(_other(attn))
    v = seen["v"] if copy.qkv is None else seen["v"].chunk(3, dim=-1)[2]
    v = v.unflatten(-1, (copy.num_heads, copy.head_dim)).transpose(1, 2)
    return output, Attention(seen["q"], seen["k"], v, copy.scale, bias, seen.get("k unrotated"))


def _record(attn: Any, seen: dict[str, Tensor], rotation: Tensor | None) -> None:
    """Let the parts that make queries, keys and values leave what they return in `seen`.

    Where there is a rotation, the parts that make queries and keys apply it, in place of the module.
    """
    projection = "qkv" if getattr(attn, "qkv", None) is not None else "v_proj"
    if not all(hasattr(attn, name) for name in (projection, "q_norm", "k_norm")):
        raise UnsupportedModel(_other(attn))

    def recorder(name: str, part: Any, turn: Callable[[Tensor], Tensor] | None = None) -> Any:
        def call(x: Tensor) -> Tensor:
            y = part(x)
            if turn is not None:
                seen[f"{name} unrotated"], y = y, turn(y).type_as(x)
            seen[name] = y
            return y

        return call

    turn = None if rotation is None else partial(_rotate, attn, rotation)
    attn.__dict__["q_norm"] = recorder("q", attn.q_norm, turn)
    attn.__dict__["k_norm"] = recorder("k", attn.k_norm, turn)
    attn.__dict__[projection] = recorder("v", _with_bias(attn, getattr(attn, projection)))


def _rotate(attn: Any, rotation: Tensor, x: Tensor) -> Tensor:
    """Queries or keys [B, H, P + N, d], those of the patch tokens rotated."""
    prefix, half = attn.num_prefix_tokens, {"half": True} if getattr(attn, "rotate_half", False) else {}
    return torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rotation, **half)], dim=2)


def _with_bias(attn: Any, projection: Any) -> Any:
    """What makes queries, keys and values. `EvaAttention` has their biases beside its `qkv`."""
    if getattr(attn, "q_bias", None) is None:
        return projection
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    attn.__dict__["q_bias"] = None  # so that it calls its projection, and adds nothing
    if attn.qkv_bias_separate:
        return lambda x: projection(x) + bias
    return lambda x: F.linear(x, projection.weight, bias)


def _mask(attn: Any, alive: Tensor) -> None:
    """Mask the attention map, which must then exist, for its gradient to the mask too."""
    dropout = attn.attn_drop
    attn.__dict__["attn_drop"] = lambda attention: dropout(_masked_softmax(attention, alive))
    attn.fused_attn = False


def stand_in(module: nn.Module) -> Any:
    """A shallow copy of a module that shares its parts; attributes set on the copy leave the module alone."""
    module = getattr(module, "_orig_mod", module)  # what `torch.compile` has wrapped
    copy: Any = object.__new__(type(module))  # `copy.copy` cannot be traced
    copy.__dict__.update(module.__dict__, _compiled_call_impl=None)
    return copy


def _other(attn: nn.Module) -> str:
    return (
        f"The model's attention is now {type(attn).__name__}, whose queries and keys tokred cannot read; "
        "wrap its parts, such as qkv and proj, or reduce the model before it is wrapped."
    )


def _masked_softmax(attention: Tensor, alive: Tensor) -> Tensor:
    """DynamicViT's masked softmax (Rao et al., 2021, official code), [B, H, P + N, P + N].

    With w = exp(z - max z) * mask, it is (w + 1e-6 / N) / (sum w + 1e-6). The ordinary softmax is a = exp(z -
    max z) / s, whose largest entry is 1 / s, so everything is divided by s.
    """
    n = attention.shape[-1]
    a = attention.float()
    alive = alive[:, None, None, :].float()
    mask = alive + (1 - alive) * torch.eye(n, device=a.device)
    epsilon = _EPSILON * a.amax(-1, keepdim=True)
    weighted = a * mask
    return ((weighted + epsilon / n) / (weighted.sum(-1, keepdim=True) + epsilon)).to(attention.dtype)
