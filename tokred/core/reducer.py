"""The interface: `Reducer` decides where the patch tokens of a block go; `View` is all that it may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokred.core import ops
from tokred.core.lazy import once
from tokred.core.reduction import History, Reduction
from tokred.core.rng import Rng
from tokred.errors import TokredError

Site = Literal["mid", "pre"]
Knob = Literal["removed", "rate", "threshold"]


class Reducer(nn.Module):
    """Base class of all methods. One instance serves one stage of a plan.

    A reducer decides and never edits: `forward` returns a `Keep`, `Merge` or `Mix`, and the framework applies
    it to features, sizes and sources. Prefix tokens (CLS, distillation, registers) are set aside before the
    decision and put back, unchanged, before the other tokens.

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
    """"mid": between attention and MLP of a layer; "pre": before it, with the previous attention."""
    stages: ClassVar[tuple[int, ...] | Literal["all"]] = (4, 7, 10)
    """Default layers, one-based; "all" for every layer."""
    knob: ClassVar[Knob] = "rate"
    """The knob: "removed" tokens per stage, or keep "rate" with int(n0 * rate^s) tokens after stage s; or a
    "threshold" from 0 to 1, `self.threshold`, by which the counts depend on the image."""
    extra: ClassVar[int] = 0
    """Tokens that the method adds to what its knob counts (EViT's fused token)."""
    proportional: bool = False
    """Add log(size) to the attention scores of later layers."""
    needs_cls: bool = False
    """Refused on models without a CLS token."""
    groups: ClassVar[tuple[str, ...]] = ("core",)
    """Groups that `--methods` takes: "core" (compared by default), "merging" or "pruning", "learned" or
    "training-free". Any other name makes a new group."""
    control: ClassVar[bool] = False
    """A control shows what a method must beat; tables mark it."""
    threshold: float = 0.5
    """Value of the knob "threshold", set by calibration; a larger one may keep more tokens or fewer."""
    host: ClassVar[bool] = False
    """Decides on the host, so that a GPU waits for it."""
    nested: ClassVar[tuple[str, ...]] = ()
    """Names of parameters with one row per output token; `forward` uses the first `keep` rows, so that one
    fit serves all budgets."""
    fit_options: ClassVar[Mapping[str, Any]] = {}
    """Options that `tokred fit` takes on a frozen backbone, where the published ones cannot work."""

    n: int
    keep: int
    any_budget: bool = False
    """Whether it is being fitted for all budgets at once, with a new random `keep` in every step."""

    def __init__(self, n: int, keep: int, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.retarget(n, keep)

    def retarget(self, n: int, keep: int) -> None:
        """Set the number of tokens before and after.

        Raises:
            TokredError: the method cannot reduce n tokens to keep.
        """
        if not (isinstance(keep, Integral) and self.floor(n) <= keep <= n):
            raise TokredError(
                f"{self.name or type(self).__name__} can reduce {n} tokens to between {self.floor(n)} and "
                f"{n}, not to {keep!r}."
            )
        self.n, self.keep = n, keep

    @classmethod
    def floor(cls, n: int) -> int:
        """Fewest tokens that one application can leave of n."""
        return 1

    @classmethod
    def adaptive(cls) -> bool:
        """Whether the counts depend on the image.

        Such a reducer returns a `Merge` with `drops=True`, in which each image uses the groups 0, 1, ...
        without gaps. The framework cuts off the groups that no image of the batch uses. Groups that only
        other images use become padding: tokens of size 0 for which `view.valid` is False, which attention
        masks and which must be dropped. `n` and `keep` are upper limits.
        """
        return cls.knob == "threshold"

    @property
    def learned(self) -> bool:
        """Whether the method has parameters of its own, which must be fitted first."""
        return any(True for _ in self.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reducer:
        """Move parameters between devices but keep them in float32, in which decisions are made."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def check_first(self) -> None:
        """Check options against the `n` tokens of a plan's first stage; by default a no-op.

        Raises:
            TokredError: an option needs more tokens.
        """

    def forward(self, view: View) -> Reduction:
        """Decide where the tokens of `view.x` [B, n, dim] go, so that `keep` are left."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(view).")

    def calibrate(self, view: View) -> None:
        """Initialise parameters from the tokens of a few images, before fitting. By default a no-op."""

    def penalty(self, reduction: Reduction) -> Tensor:
        """Term that fitting adds to its loss: a scalar, the mean over images; by default zero."""
        return torch.zeros(())


@dataclass
class Attention:
    """Queries, keys and values of one layer, [B, H, P + N, d], prefix first, as they entered the scores."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    bias: Tensor | None = None  # [B, 1, 1, P + N], log(size) under proportional attention; -inf for padding
    unrotated: Tensor | None = None  # k before the rotary position embedding, where the model has one


@dataclass
class View:
    """What a reducer may look at: the patch tokens of one block and, computed on demand, its attention.

    Attributes:
        x: [B, N, C] patch tokens, after the attention residual at site "mid", entering the layer at site
            "pre".
        prefix: [B, P, C] prefix tokens, for reading only.
        layer: the stage's layer, one-based.
        depth: number of layers of the model.
        has_cls: whether the first prefix token is a CLS token.
        grid: rows and columns of the image's patches, before any reduction.
        rng: the only source of randomness.
        attention: attention of the layer ("mid") or of the one before ("pre").
        history: the reductions so far; None before the first.
        adaptive: whether the counts depend on the image, so that there may be padding.
    """

    x: Tensor
    prefix: Tensor
    layer: int = 1
    depth: int = 12
    has_cls: bool = True
    grid: tuple[int, int] = (14, 14)
    rng: Rng = field(default_factory=Rng)
    attention: Attention | None = None
    history: History | None = None
    adaptive: bool = False

    @once
    def size(self) -> Tensor:
        """Patches that each token stands for, [B, N], float32."""
        return self.history.size if self.history else torch.ones_like(self.x[..., 0], dtype=torch.float32)

    @once
    def valid(self) -> Tensor:
        """[B, N] bool, False for padding, which follows the tokens of images that have fewer than others."""
        return self.size > 0

    @once
    def position(self) -> Tensor:
        """Row and column of every token, the mean over its patches, [B, N, 2] float32, from (0, 0)."""
        columns = self.grid[1]
        places = self.history.places(columns) if self.history else ops.raster(self.x, columns)
        return places[..., :2] / places[..., 2:].clamp(min=torch.finfo(torch.float32).tiny)

    @once
    def alive(self) -> Tensor | None:
        """[B, N] in training with masks, 1 for tokens that are left, 0 for dropped ones; None otherwise."""
        return self.history.alive if self.history else None

    @property
    def num_prefix(self) -> int:
        """Number of prefix tokens, P."""
        return self.prefix.shape[1]

    @property
    def keys(self) -> Tensor:
        """Attention keys of the patch tokens, [B, H, N, d].

        They are those before the rotary position embedding, where the model has one: what tokens hold, at
        whatever place. `cls_attention` and `received_attention` follow the rotated ones, as the model does.
        """
        a = self._attention()
        return (a.k if a.unrotated is None else a.unrotated)[:, :, self.num_prefix :]

    @property
    def values(self) -> Tensor:
        """Attention values of the patch tokens, [B, H, N, d]."""
        return self._attention().v[:, :, self.num_prefix :]

    @once
    def key_metric(self) -> Tensor:
        """Keys averaged over heads, [B, N, d], float32 (ToMe's similarity metric)."""
        return ops.head_mean(self.keys)

    @once
    def distance(self) -> Tensor:
        """Euclidean distances of patch tokens, [B, N, N] float32, without gradient; 0 for equal tokens."""
        return ops.pairwise_distance(self.x.detach().float())

    @once
    def cls_attention(self) -> Tensor:
        """Attention that the CLS token pays to every patch token, mean over heads, [B, N], float32.

        The softmax runs over all keys, prefix included; prefix columns are then dropped without
        renormalisation. This takes one query row against all keys, so the layer's own attention stays fused.

        Raises:
            TokredError: the model has no CLS token.
        """
        if not self.has_cls:
            raise TokredError(
                "This model has no CLS token, so there is no CLS attention; choose another method."
            )
        a = self._attention()
        return ops.row_attention(a.q[:, :, :1].float() * a.scale, a.k.float(), a.bias)[:, self.num_prefix :]

    @once
    def importance(self) -> Tensor:
        """CLS attention times the norm of the values, [B, N] float32: what each token gives to the CLS."""
        return self.cls_attention * torch.linalg.vector_norm(self.values.float(), dim=(1, 3))

    @once
    def received_attention(self) -> Tensor:
        """Attention that each patch token receives, summed over heads and all queries, [B, N] float32.

        This needs the full attention map, whose FLOPs count. Queries of padding are left out.
        """
        a = self._attention()
        asks = a.bias.squeeze(1).mT > -torch.inf if self.adaptive and a.bias is not None else None
        return ops.received_attention(a.q, a.k, a.scale, a.bias, asks)[:, self.num_prefix :]

    def _attention(self) -> Attention:
        if self.attention is None:
            raise TokredError(
                'There is no attention before layer 1; start site "pre" methods at layer 2 or later.'
            )
        return self.attention
