"""timm's attention with something to look at or to mask: shallow copies of a module on its own weights.

A hook registered inside `forward` would do the same but not survive `torch.compile` and `torch.export`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tokred.core.reducer import Attention

_EPSILON = 1e-6


class Recorder(nn.Module):
    """Calls a module and remembers what it returned."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.output: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.output = self.module(x)
        return self.output

    def take(self) -> Tensor:
        output, self.output = self.output, None
        assert output is not None
        return output


def tap(attn: nn.Module) -> Any:
    """A copy of an attention module that remembers its queries, keys and values."""
    copied = copy.copy(attn)
    copied._modules = dict(attn._modules)
    for name in ("qkv", "q_norm", "k_norm"):
        copied._modules[name] = Recorder(attn._modules[name])  # type: ignore[arg-type]
    return copied


def recorded(tapped: Any, bias: Tensor | None) -> Attention:
    """What a tapped module remembers of its last call."""
    qkv = tapped.qkv.take()
    v = qkv.chunk(3, dim=-1)[2].unflatten(-1, (tapped.num_heads, tapped.head_dim)).transpose(1, 2)
    return Attention(tapped.q_norm.take(), tapped.k_norm.take(), v, tapped.scale, bias)


def masked(attn: nn.Module, alive: Tensor) -> Any:
    """A copy of an attention module in which tokens that are not `alive` [B, P + N] are seen by nobody but themselves."""
    copied: Any = copy.copy(attn)
    dropout: Any = attn._modules["attn_drop"]
    copied._modules = {**attn._modules, "attn_drop": nn.Sequential(_MaskedSoftmax(alive), dropout)}
    copied.fused_attn = False  # the map itself is needed, and its gradient to the mask
    return copied


class _MaskedSoftmax(nn.Module):
    """DynamicViT's masked softmax (Rao et al., 2021, their code), computed from the ordinary one.

    With w = exp(z - max z) * mask, it is (w + 1e-6 / N) / (sum w + 1e-6). The ordinary softmax is a = exp(z - max z) / s, whose largest
    entry is 1 / s, so everything is divided by s.
    """

    def __init__(self, alive: Tensor) -> None:
        super().__init__()
        self.alive = alive

    def forward(self, attention: Tensor) -> Tensor:
        n = attention.shape[-1]
        a = attention.float()
        itself = torch.eye(n, device=a.device)
        alive = self.alive[:, None, None, :].float()
        mask = alive + (1 - alive) * itself
        epsilon = _EPSILON * a.amax(-1, keepdim=True)
        weighted = a * mask
        return ((weighted + epsilon / n) / (weighted.sum(-1, keepdim=True) + epsilon)).to(attention.dtype)
