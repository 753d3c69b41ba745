"""timm's attention, called so that its queries, keys and values can be read and tokens can be masked.

A hook that is registered inside `forward` would do the same, but not survive `torch.compile` and
`torch.export`, nor two threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokred.core.reducer import Attention
from tokred.errors import UnsupportedModel

_EPSILON = 1e-6
_SEEN = ("qkv", "q_norm", "k_norm")


def call_attention(
    attn: nn.Module,
    x: Tensor,
    bias: Tensor | None = None,
    alive: Tensor | None = None,
    record: bool = False,
) -> tuple[Tensor, Attention | None]:
    """Call an attention module, and tell what entered its scores.

    Args:
        attn: timm's `Attention`, whose parts may have been replaced or wrapped.
        x: [B, P + N, C] normalised tokens.
        bias: [B, 1, 1, P + N], added to the scores.
        alive: [B, P + N]; tokens where it is 0 are seen by nobody but themselves.
        record: whether to tell what entered the scores; None is told otherwise.

    Raises:
        UnsupportedModel: the module has become another one, in which queries and keys cannot be seen.
    """
    if alive is None and not record:
        return attn(x, attn_mask=bias), None
    copy = stand_in(attn)
    seen: dict[str, Tensor] = {}
    if alive is not None:
        _mask(copy, alive)
    if record:
        _record(copy, seen)
    output = copy(x, attn_mask=bias)
    if not record:
        return output, None
    if len(seen) < len(_SEEN):
        raise UnsupportedModel(_other(attn))
    v = seen["qkv"].chunk(3, dim=-1)[2].unflatten(-1, (copy.num_heads, copy.head_dim)).transpose(1, 2)
    return output, Attention(seen["q_norm"], seen["k_norm"], v, copy.scale, bias)


def _record(attn: Any, seen: dict[str, Tensor]) -> None:
    """Let the parts that make queries, keys and values leave what they return in `seen`."""

    def recorder(name: str, part: Any) -> Any:
        def call(x: Tensor) -> Tensor:
            seen[name] = part(x)
            return seen[name]

        return call

    for name in _SEEN:
        if not hasattr(attn, name):
            raise UnsupportedModel(_other(attn))
        attn.__dict__[name] = recorder(name, getattr(attn, name))


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
