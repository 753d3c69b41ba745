"""Stages on random tokens, laid out in memory as timm's attention leaves them."""

from __future__ import annotations

import torch

from tokred.core import registry
from tokred.core.reducer import Attention
from tokred.core.rng import seeded
from tokred.core.stage import Stage, State

METHODS = ("lotm", "tome", "topk", "evit", "patchmerger", "sinkhorn", "sit", "dpcknn", "kmedoids")


def stage(method: str, n: int, keep: int, dim: int = 384, heads: int = 6) -> Stage:
    """A stage from n to keep patch tokens, with drawn parameters."""
    with seeded(0):
        reducer = registry.get(method)(n, keep, dim, heads)
    return Stage(reducer, layer=4, depth=12, num_prefix=1, has_cls=True).eval()


def state(batch: int, n: int, dim: int = 384, heads: int = 6, device: torch.device | None = None) -> State:
    """Tokens [batch, 1 + n, dim] before or within layer 4, and the attention that a reducer may look at."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1 + n, dim, generator=rng).to(device)
    qkv = torch.randn(batch, 1 + n, 3 * dim, generator=rng).to(device)
    q, k, v = qkv.reshape(batch, 1 + n, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return State(x, 4, "mid", attention=Attention(q, k, v, (dim // heads) ** -0.5))


def kept(method: str, n: int) -> int:
    """Tokens after one stage of a 30 % cut of 196 tokens: a ToMe stage removes 5 %, the others keep 70 %."""
    return round(n * (0.95 if method == "tome" else 0.7))
