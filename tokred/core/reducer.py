"""The one interface: `Reducer` decides where the patch tokens of one block go; `View` is all that it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from tokred.core.reduction import Reduction, Sizes
from tokred.errors import TokredError

Site = Literal["mid", "pre"]
Knob = Literal["removed", "rate"]

T = TypeVar("T")

_DIRECT_DISTANCES = 25  # tokens up to which distances come from differences instead of inner products
_ROWS = 256  # of a map over pairs of tokens that are worked on at once


class Reducer(nn.Module):
    """Base class of all methods. One instance serves one stage of a plan.

    A reducer decides and never edits: `forward` returns a `Keep`, `Merge` or `Mix`, and the framework applies it to features,
    sizes and sources. Prefix tokens (CLS, distillation, registers) are set aside before and come back first, unchanged.

    Args:
        n: patch tokens in.
        keep: patch-side tokens out, a fused token included.
        dim: channels.
        heads: attention heads.

    Subclasses take their options as keyword-only arguments with defaults and state these facts:
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    site: Site = "mid"
    """"mid": between attention and MLP of the stage's layer. "pre": before the layer, seeing the previous layer's attention."""
    stages: ClassVar[tuple[int, ...] | Literal["all"]] = (4, 7, 10)
    """Default layers, one-based; "all" for every layer."""
    knob: ClassVar[Knob] = "rate"
    """The published knob: "removed" tokens per stage, or keep "rate" with cumulative counts int(n0 * rate^s)."""
    extra: ClassVar[int] = 0
    """Tokens that the method adds to what its knob counts (EViT's fused token)."""
    proportional: bool = False
    """Add log(size) to the attention scores of later layers."""
    needs_cls: bool = False
    """Refused on models without a CLS token."""
    control: ClassVar[bool] = False
    """A control shows what a method must beat; tables mark it."""
    nested: ClassVar[tuple[str, ...]] = ()
    """Parameters with one row for each token out. `forward` uses the first `keep` rows, so that one fit can serve every budget."""

    def __init__(self, n: int, keep: int, dim: int, heads: int) -> None:
        super().__init__()
        if not self.floor(n) <= keep <= n:
            raise TokredError(
                f"{self.name or type(self).__name__} takes {n} tokens to between {self.floor(n)} and {n}, not to {keep}."
            )
        self.n, self.keep, self.dim, self.heads = n, keep, dim, heads

    @classmethod
    def floor(cls, n: int) -> int:
        """Fewest tokens that one application can leave of n."""
        return 1

    @property
    def learned(self) -> bool:
        """Whether the method owns parameters, so that it means nothing before it is fitted."""
        return any(True for _ in self.parameters())

    def forward(self, view: View) -> Reduction:
        """Decide where the tokens of `view.x` [B, n, dim] go, leaving `keep`."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(view).")

    def calibrate(self, view: View) -> None:
        """Set parameters by the tokens of a few images, before fitting starts. By default they stay as they were drawn."""

    def penalty(self, reduction: Reduction) -> Tensor:
        """What fitting adds to its loss for a decision of this reducer: a scalar, the mean over images. By default nothing."""
        return torch.zeros(())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Parameters that are drawn inside depend on the seed alone, and the program's own random numbers are left as they were."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@dataclass
class Attention:
    """Queries, keys and values of one layer, [B, H, P + N, d], prefix first, as they entered the scores."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    bias: Tensor | None = None  # [B, 1, 1, P + N], log(size) under proportional attention


@dataclass
class Rng:
    """Random numbers that are a function of (seed, layer, image, position): no state, the same on every device and in every batch.

    Args:
        seed: of the run.
        images: [B] int64, a key for every image. Without keys all images of a batch draw the same numbers.
    """

    seed: int = 0
    images: Tensor | None = None
    layer: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) for every token of `like` [B, N, ...], as [B, N] float32."""
        batch, n = like.shape[:2]
        position = torch.arange(n, device=like.device)
        image = (
            torch.zeros(batch, dtype=torch.long, device=like.device)
            if self.images is None
            else self.images.to(like.device)
        )
        state = (
            _scramble(_scramble(image + 0x9E3779B9 * (self.seed + 1)) + self.layer).unsqueeze(1) + position
        )
        return (_scramble(state) >> 8).float() / 2**24


def _scramble(x: Tensor) -> Tensor:
    """A 32-bit integer hash (two rounds of xor-shift and multiply) in int64 arithmetic."""
    for multiplier in (0x7FEB352D, 0x6C50B47D):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * multiplier) & 0xFFFFFFFF
    return x ^ (x >> 15)


class _once(Generic[T]):  # noqa: N801, a decorator
    """A property that is computed when first asked for.

    `functools.cached_property` takes a lock, which `torch.compile` cannot trace and, before Python 3.12, all views share.
    """

    def __init__(self, compute: Callable[[View], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, view: View | None, owner: type[View]) -> T:
        if view is None:
            return self  # type: ignore[return-value]  # on the class, as properties do
        value = view.__dict__[self.name] = self.compute(view)
        return value


@dataclass
class View:
    """What a reducer may look at: the patch tokens of one block, and lazily what its attention computed anyway.

    Attributes:
        x: [B, N, C] patch tokens, after the attention residual at site "mid", entering the layer at site "pre".
        sizes: [B, N] patches that each token stands for, or what adds them up when `size` is asked for.
        prefix: [B, P, C] prefix tokens, for reading.
        layer: one-based.
        depth: layers of the model.
        has_cls: whether the first prefix token is a CLS token.
        rng: the only randomness.
        attention: of the layer ("mid") or of the one before ("pre").
        alive: [B, N] in training, where dropped tokens are masked instead of removed: 1 for those still there, else 0. None otherwise.
    """

    x: Tensor
    sizes: Tensor | Sizes
    prefix: Tensor
    layer: int = 1
    depth: int = 12
    has_cls: bool = True
    rng: Rng = field(default_factory=Rng)
    attention: Attention | None = None
    alive: Tensor | None = None

    @property
    def size(self) -> Tensor:
        """Patches that each token stands for, [B, N], float32."""
        return self.sizes.value if isinstance(self.sizes, Sizes) else self.sizes

    @property
    def num_prefix(self) -> int:
        return self.prefix.shape[1]

    @property
    def keys(self) -> Tensor:
        """Attention keys of the patch tokens, [B, H, N, d]."""
        return self._attention().k[:, :, self.num_prefix :]

    @_once
    def key_metric(self) -> Tensor:
        """Keys averaged over heads, [B, N, d], in float32 (ToMe's similarity metric)."""
        heads = self.keys.float().unbind(1)
        return sum(heads[1:], heads[0]) / len(heads)  # on a CPU half the time of `mean`

    @_once
    def distance(self) -> Tensor:
        """Euclidean distances between the patch tokens, [B, N, N], float32, without gradient.

        Symmetric, and exactly 0 between equal tokens, so that ties are ties. Squared norms are the diagonal of the inner products for that
        reason: `torch.cdist` computes them apart, and its rounding puts equal tokens up to 0.05 away from each other.
        """
        x = self.x.detach().float()
        if x.shape[1] <= _DIRECT_DISTANCES:
            return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        x = x - x.mean(1, keepdim=True)  # leaves the distances as they are and their rounding error small
        inner = torch.matmul(x, x.mT)
        square = inner.diagonal(dim1=1, dim2=2).clone()
        for rows, own in zip(
            inner.split(_ROWS, dim=1), square.split(_ROWS, dim=1), strict=True
        ):  # in place: one matrix, not three
            rows.mul_(-2).add_(own.unsqueeze(2) + square.unsqueeze(1)).clamp_(min=0).sqrt_()
        return inner

    @_once
    def cls_attention(self) -> Tensor:
        """Attention that the CLS token pays to every patch token, mean over heads, [B, N], float32.

        The softmax runs over all keys, prefix included; prefix columns are dropped after it and nothing is renormalised. It is one
        query row against all keys, so the layer's own attention stays fused.

        Raises:
            TokredError: the model has no CLS token.
        """
        if not self.has_cls:
            raise TokredError(
                "This model has no CLS token, so there is no CLS attention; use a method that does not need it."
            )
        attention = self._attention()
        query, keys = attention.q[:, :, :1].float() * attention.scale, attention.k.float()
        scores = torch.linalg.vecdot(
            keys.transpose(1, 2), query.transpose(1, 2)
        ).mT  # in the keys' own layout: nothing is copied
        if attention.bias is not None:
            scores = scores + attention.bias.float().squeeze(2)
        return scores.softmax(-1).mean(1)[:, self.num_prefix :]

    @_once
    def received_attention(self) -> Tensor:
        """Attention that every patch token receives, summed over heads and over all queries, prefix included, [B, N], float32.

        This needs the full map; it is computed a head and a slice of queries at a time, so that it never exists as a whole and what does
        stays in the caches. Its cost counts.
        """
        a = self._attention()
        bias = None if a.bias is None else a.bias.float().squeeze(1)  # [B, 1, P + N]
        total = a.k.new_zeros(a.k.shape[0], a.k.shape[2], dtype=torch.float32)  # [B, P + N]
        for q, k in zip(a.q.unbind(1), a.k.float().unbind(1), strict=True):
            for rows in q.split(_ROWS, dim=1):
                scores = torch.bmm(rows.float() * a.scale, k.mT)  # [B, rows, P + N]
                total = total + (scores if bias is None else scores + bias).softmax(-1).sum(1)
        return total[:, self.num_prefix :]

    def _attention(self) -> Attention:
        if self.attention is None:
            raise TokredError(
                'There is no attention to look at before layer 1: start site "pre" methods at layer 2 or later.'
            )
        return self.attention
