"""What a reducer returns: where every token goes. `Keep`, `Merge` and `Mix`; and `Mask`, in training.

A decision maps N tokens to M: features by `pool`, and extensive quantities (token sizes, source maps) by
`carry`, which never uses the weights of a merge: a token that stands for three patches takes them along
wherever it goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.core.lazy import once
from tokred.core.ops import behind_prefix, count_groups, extremes_of_groups, raster, sum_groups, take_rows
from tokred.errors import TokredError

_FEW = 3  # numbers a token: its size, and the sums of its patches' rows and columns


class Reduction(ABC):
    """A decision about the N patch tokens of every image of a batch."""

    @property
    def linear(self) -> bool:
        """Whether `pool` is the product with `matrix`."""
        return True

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Features of the outputs, [B, M, C], from those of the inputs, [B, N, C]."""

    @abstractmethod
    def carry(self, mass: Tensor) -> Tensor:
        """Sum an extensive quantity [B, N, K] over the tokens that each output absorbs, [B, M, K]."""

    @abstractmethod
    def labels(self) -> Tensor:
        """The output that holds each input token, or its largest share, [B, N] int64; -1 if dropped."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The weights that `pool` applies, [B, M, N]; if it is not linear, those of the group's mean."""

    def output_shape(self) -> tuple[int, int]:
        """The numbers of images and of output tokens, (B, M); by default M is N."""
        images, tokens = self.labels().shape
        return images, tokens

    def apply(self, x: Tensor, prefix: int) -> Tensor:
        """Pool the patch tokens of [B, P + N, C] to [B, P + M, C]; the first `prefix` rows stay."""
        return torch.cat([x[:, :prefix], self.pool(x[:, prefix:])], dim=1)

    def sizes(self, size: Tensor) -> Tensor:
        """Sizes of the outputs, [B, M], in patches: the sums of the inputs' sizes [B, N]."""
        return self.carry(size.unsqueeze(-1)).squeeze(-1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Copy output features [B, M, C] back to the input tokens [B, N, C]; zeros for dropped ones."""
        labels = self.labels()
        full = take_rows(y, labels.clamp(min=0))
        return full * (labels >= 0).unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class Keep(Reduction):
    """Some tokens stay as they are, the others go: pruning, and medoids.

    >>> keep = Keep(torch.tensor([[2, 0]]), n=3)
    >>> keep.pool(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
    [3.0, 1.0]

    Args:
        index: [B, M] int64, the input that becomes each output, without repetition.
        n: number of inputs, N.
        label: [B, N] int64, the output that absorbs each input's size and sources; -1 for none. By default
            dropped tokens are lost.
    """

    index: Tensor
    n: int
    label: Tensor | None = None

    def pool(self, x: Tensor) -> Tensor:
        return take_rows(x, self.index)

    def apply(self, x: Tensor, prefix: int) -> Tensor:
        # Rows of the prefix are rows as well: that saves a copy of all others.
        return take_rows(x, behind_prefix(self.index, prefix))

    def carry(self, mass: Tensor) -> Tensor:
        if self.label is None:
            return take_rows(mass, self.index)
        absorbed = mass * (self.label >= 0).unsqueeze(-1)
        return sum_groups(absorbed, self.label.clamp(min=0), self.index.shape[1])

    def labels(self) -> Tensor:
        if self.label is not None:
            return self.label
        batch, m = self.index.shape
        slots = torch.arange(m, device=self.index.device).expand(batch, -1)
        return self.index.new_full((batch, self.n), -1).scatter(1, self.index, slots)

    def matrix(self) -> Tensor:
        return F.one_hot(self.index, self.n).float()

    def output_shape(self) -> tuple[int, int]:
        return self.index.shape[0], self.index.shape[1]


@dataclass(frozen=True, eq=False)
class Merge(Reduction):
    """Hard groups: every token joins one output, by default the mean of its group, or is dropped.

    >>> merge = Merge(torch.tensor([[0, 1, 0]]), m=2)
    >>> merge.pool(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
    [2.0, 2.0]
    >>> merge.sizes(torch.ones(1, 3)).tolist()
    [[2.0, 1.0]]
    >>> largest = Merge(torch.tensor([[0, 0]]), m=1, reduce="absmax")
    >>> largest.pool(torch.tensor([[[1.0, 2.0], [-3.0, 0.0]]])).tolist()
    [[[-3.0, 2.0]]]

    Args:
        label: [B, N] int64 in [0, m), the group of each token; with `drops` also -1, for none. No group may
            be empty.
        m: number of groups, M.
        weight: [B, N], weight of each token within its group; by default all equal. ToMe passes the token
            sizes.
        reduce: what becomes of a group: "mean"; "sum" (EViT's fused token); "norm", the mean scaled to the
            largest norm in the group (ToFu's MLERP); or "absmax", in each channel the value of largest
            magnitude (CubistMerge), which takes no weight. The last two are not linear.
        mass: [B, N], what each token adds to the size of its output; by default its size. DiffRate's sources
            add their size times a similarity. Source maps and positions still count patches.
        drops: whether labels may be -1, for tokens that are lost, as with `Keep`. These form a group of their
            own that is cut off, so that shapes do not depend on their number.
    """

    label: Tensor
    m: int
    weight: Tensor | None = None
    reduce: Literal["mean", "sum", "norm", "absmax"] = "mean"
    mass: Tensor | None = None
    drops: bool = False

    @property
    def linear(self) -> bool:
        return self.reduce in ("mean", "sum")

    def pool(self, x: Tensor) -> Tensor:
        # Sums of many bfloat16 tokens lose bits; groups are added in float32 and rounded once.
        wide = _wide(x)
        if self.reduce == "absmax":
            return self._cut(extremes_of_groups(wide, self._slots(), self._groups)).to(x.dtype)
        if self.weight is not None:
            pooled = self.carry(wide * self._share(wide.dtype).unsqueeze(-1))
        else:
            pooled = self.carry(wide)
            if self.reduce != "sum":
                pooled = pooled / self._counts().to(wide.dtype).unsqueeze(-1)
        if self.reduce == "norm":
            pooled = pooled * self._stretch(wide, pooled).unsqueeze(-1)
        return pooled.to(x.dtype)

    def apply(self, x: Tensor, prefix: int) -> Tensor:
        # Tokens of the prefix are groups of their own: that saves a copy of all others, 3 % of a DeiT-S with
        # a stage in every layer.
        weight, reduce = self.weight, self.reduce
        if weight is not None:
            if reduce == "mean":
                weight, reduce = self._share(_wide(x).dtype), "sum"
            weight = torch.cat([weight.new_ones(weight.shape[0], prefix), weight], dim=1)
        label = behind_prefix(self._slots(), prefix)
        return replace(self, label=label, m=self.m + prefix, weight=weight, reduce=reduce).pool(x)

    @property
    def _groups(self) -> int:
        """The number of groups, that of the dropped tokens included."""
        return self.m + 1 if self.drops else self.m

    def _slots(self) -> Tensor:
        """The group of each token, [B, N]; m for dropped ones."""
        return torch.where(self.label < 0, self.m, self.label) if self.drops else self.label

    def _counts(self) -> Tensor:
        """The number of tokens in each group, [B, M]; at least one, since padding has none."""
        counts = self._cut(count_groups(self._slots(), self._groups))
        return counts.clamp(min=1) if self.drops else counts

    def _cut(self, groups: Tensor) -> Tensor:
        """Values of all groups, [B, groups, ...], without that of the dropped tokens."""
        return groups[:, : self.m] if self.drops else groups

    def _stretch(self, x: Tensor, mean: Tensor) -> Tensor:
        """The largest norm in each group over that of its mean, [B, M]."""
        norm = torch.linalg.vector_norm(x, dim=-1)
        largest = norm.new_zeros(x.shape[0], self._groups).scatter_reduce(1, self._slots(), norm, "amax")
        return self._cut(largest) / torch.linalg.vector_norm(mean, dim=-1).clamp(min=1e-12)

    def _share(self, dtype: torch.dtype) -> Tensor:
        """The weight of each token, [B, N]; for a mean, the weights of a group sum to one."""
        assert self.weight is not None
        weight = self.weight.to(dtype)
        if self.reduce == "sum":
            return weight
        total = self._total.to(dtype)
        if self.drops:  # dropped tokens may weigh nothing
            total = torch.where(total == 0, 1, total)
        return weight / total.gather(1, self._slots())

    @once
    def _total(self) -> Tensor:
        """The weight of each group, [B, groups]."""
        assert self.weight is not None
        return sum_groups(_wide(self.weight).unsqueeze(-1), self._slots(), self._groups).squeeze(-1)

    def carry(self, mass: Tensor) -> Tensor:
        return self._cut(sum_groups(mass, self._slots(), self._groups))

    def sizes(self, size: Tensor) -> Tensor:
        if self.mass is None and size is self.weight:
            return self._cut(self._total)
        return super().sizes(size if self.mass is None else self.mass)

    def labels(self) -> Tensor:
        return self.label

    def matrix(self) -> Tensor:
        member = F.one_hot(self._slots(), self._groups)[..., : self.m].mT.float()
        weighted = member if self.weight is None else member * self.weight.float().unsqueeze(1)
        if self.reduce == "sum":
            return weighted
        total = weighted.sum(-1, keepdim=True)
        return weighted / (torch.where(total == 0, 1, total) if self.drops else total)

    def output_shape(self) -> tuple[int, int]:
        return len(self.label), self.m

    def trimmed(self) -> Merge:
        """The decision without the last groups, which no image of the batch uses. This reads values.

        On the meta device, or without images, there are none, and all groups stay.
        """
        if self.label.is_meta or not self.label.numel():
            return self
        return replace(self, m=max(1, int(self.label.max()) + 1))  # images that are not finite keep nothing


@dataclass(frozen=True, eq=False)
class Mix(Reduction):
    """Soft assignment: every output is a weighted sum over all tokens.

    >>> mix = Mix(torch.tensor([[[0.5, 0.5, 0.0]]]))
    >>> mix.pool(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
    [1.5]

    Args:
        weight: [B, M, N].
        value: [B, N, C], pooled instead of the tokens themselves (PatchMerger pools normalised tokens).
    """

    weight: Tensor
    value: Tensor | None = None

    def pool(self, x: Tensor) -> Tensor:
        value = x if self.value is None else self.value
        return torch.matmul(self.weight.to(value.dtype), value).to(x.dtype)

    def carry(self, mass: Tensor) -> Tensor:
        if mass.shape[-1] > _FEW:
            return torch.matmul(self.shares().to(mass.dtype), mass)
        # Bookkeeping of a few numbers a token, element by element: the FLOPs of a plan are the same whether
        # anybody asks for it or not.
        return torch.stack([(self.shares() * part.unsqueeze(1)).sum(-1) for part in mass.unbind(-1)], dim=-1)

    def shares(self) -> Tensor:
        """Share of each input token in each output, [B, M, N]; columns sum to one."""
        weight = self.weight.float()
        total = weight.sum(1, keepdim=True)
        tiny = torch.finfo(weight.dtype).tiny
        return torch.where(total >= tiny, weight / total.clamp(min=tiny), 1 / weight.shape[1])

    def labels(self) -> Tensor:
        return self.weight.argmax(1)

    def matrix(self) -> Tensor:
        return self.weight

    def output_shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def unmerge(self, y: Tensor) -> Tensor:
        return torch.matmul(self.shares().mT.to(y.dtype), y)


@dataclass(frozen=True, eq=False)
class Mask(Reduction):
    """The fourth decision, for training only: all tokens stay, and some are masked out of later attention.

    Methods that drop tokens are trained in this way: gradients reach the decision through the mask. A mask
    saves no FLOPs, and a reducer in evaluation mode must not return one.

    Args:
        alive: [B, N] float32, 1 where the token takes part, 0 where it is dropped.
    """

    alive: Tensor

    def pool(self, x: Tensor) -> Tensor:
        return x

    def carry(self, mass: Tensor) -> Tensor:
        return mass * (self.alive.detach() > 0).unsqueeze(-1)

    def labels(self) -> Tensor:
        position = torch.arange(self.alive.shape[1], device=self.alive.device).expand(self.alive.shape)
        return torch.where(self.alive > 0, position, -1)

    def matrix(self) -> Tensor:
        return torch.diag_embed(torch.ones_like(self.alive))


class History:
    """The reductions of a batch so far, and the number of patches that each token stands for.

    Args:
        reduction: the last one.
        before: the history before it; None if it is the first.
    """

    def __init__(self, reduction: Reduction, before: History | None = None) -> None:
        self.reductions: tuple[Reduction, ...] = (*(before.reductions if before else ()), reduction)
        self._before = before
        self._places: Tensor | None = None

    @property
    def alive(self) -> Tensor | None:
        """[B, M] in training by masks, 1 for the patch tokens that are still there, else 0."""
        last = self.reductions[-1]
        return last.alive if isinstance(last, Mask) else None

    @once
    def size(self) -> Tensor:
        """Patches that each token stands for, [B, M], float32."""
        reduction = self.reductions[-1]
        if self._before is None:
            return reduction.sizes(torch.ones_like(reduction.labels(), dtype=torch.float32))
        return reduction.sizes(self._before.size)

    def places(self, columns: int) -> Tensor:
        """Sums of row, column and 1 over the patches of each token, [B, M, 3] float32.

        Args:
            columns: number of columns of patches.
        """
        if self._places is None:
            reduction = self.reductions[-1]
            before = self._before.places(columns) if self._before else raster(reduction.labels(), columns)
            self._places = reduction.carry(before)
        return self._places


def _wide(x: Tensor) -> Tensor:
    """x with at least the precision of float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def compose(reductions: Sequence[Reduction]) -> Tensor:
    """The source map of several stages, [B, M, N0]: the share of each original token in each final token.

    >>> compose([Merge(torch.tensor([[0, 1, 0]]), m=2), Keep(torch.tensor([[0]]), n=2)]).tolist()
    [[[1.0, 0.0, 1.0]]]

    Raises:
        ValueError: there is no reduction.
    """
    if not reductions:
        raise ValueError("compose() needs at least one reduction; an empty plan has none.")
    first = reductions[0].labels()
    source = torch.eye(first.shape[1], device=first.device).expand(first.shape[0], -1, -1)
    for reduction in reductions:
        source = reduction.carry(source)
    return source


def compose_labels(reductions: Sequence[Reduction]) -> Tensor:
    """The final token that holds every original token, [B, N0]; -1 where it was dropped on the way.

    >>> compose_labels([Merge(torch.tensor([[0, 1, 0]]), m=2), Keep(torch.tensor([[0]]), n=2)]).tolist()
    [[0, -1, 0]]
    """
    labels = reductions[0].labels()
    for reduction in reductions[1:]:
        later = reduction.labels().gather(1, labels.clamp(min=0))
        labels = torch.where(labels < 0, labels, later)
    return labels


def unmerge(reductions: Sequence[Reduction], y: Tensor) -> Tensor:
    """Features of the final tokens [B, M, C] on the original tokens [B, N0, C]; zeros for dropped ones.

    >>> unmerge([Merge(torch.tensor([[0, 1, 0]]), m=2)], torch.tensor([[[7.0], [8.0]]])).flatten().tolist()
    [7.0, 8.0, 7.0]

    Raises:
        TokredError: these are no reductions, or y is not of the final patch tokens.
    """
    if not (isinstance(reductions, Sequence) and all(isinstance(one, Reduction) for one in reductions)):
        raise TokredError(f"unmerge takes a sequence of reductions, such as Merge; got {reductions!r}.")
    if not (isinstance(y, Tensor) and y.ndim == 3):
        raise TokredError(f"unmerge takes features [B, M, C]; got {tuple(getattr(y, 'shape', ())) or y!r}.")
    if reductions and tuple(y.shape[:2]) != reductions[-1].output_shape():
        images, tokens = reductions[-1].output_shape()
        raise TokredError(
            f"The last reduction leaves {tokens} patch tokens of {images} images; these features have the "
            f"shape {list(y.shape)}; leave prefix tokens out."
        )
    for reduction in reversed(reductions):
        y = reduction.unmerge(y)
    return y
