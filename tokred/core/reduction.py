"""What a reducer returns: where every token goes. `Keep`, `Merge` and `Mix` are applied to features, sizes and sources alike.

A decision maps N tokens to M. Features follow `pool`. Extensive quantities (token sizes, source maps) follow `carry`, which never
uses the weights of a decision: a token that stands for three patches brings its three patches wherever it goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Reduction(ABC):
    """A decision about N tokens of every image of a batch. Shapes: x is [B, N, C], the result [B, M, C]."""

    @abstractmethod
    def pool(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Features of the M outputs, [B, P + M, C], from those of the N inputs, [B, P + N, C]; the `prefix` first rows pass unchanged."""

    @abstractmethod
    def carry(self, mass: Tensor) -> Tensor:
        """Move an extensive quantity, [B, N, K], to the outputs, [B, M, K]: sums over what each output absorbs."""

    @abstractmethod
    def labels(self) -> Tensor:
        """Output slot of every input token, [B, N] int64; -1 where the token is dropped. For `Mix`, the largest share."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The weights that `pool` applies, [B, M, N]."""

    def sizes(self, size: Tensor) -> Tensor:
        """Patches that each output stands for, [B, M], from those of the inputs, [B, N]."""
        return self.carry(size.unsqueeze(-1)).squeeze(-1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every input token its output's features back, [B, M, C] to [B, N, C]; zeros where it was dropped."""
        labels = self.labels()
        full = take_rows(y, labels.clamp(min=0))
        return full * (labels >= 0).unsqueeze(-1)


@dataclass(frozen=True)
class Keep(Reduction):
    """Some tokens stay as they are, the others go: pruning, and medoids.

    Args:
        index: [B, M] int64, the input that becomes each output, without repetition.
        label: [B, N] int64, the output that absorbs each input's size and sources; -1 for none. By default dropped tokens are lost.
    """

    index: Tensor
    n: int
    label: Tensor | None = None

    def pool(self, x: Tensor, prefix: int = 0) -> Tensor:
        return take_rows(x, _behind(self.index, prefix))

    def carry(self, mass: Tensor) -> Tensor:
        if self.label is None:
            return take_rows(mass, self.index)
        return sum_groups(
            mass * (self.label >= 0).unsqueeze(-1), self.label.clamp(min=0), self.index.shape[1]
        )

    def labels(self) -> Tensor:
        if self.label is not None:
            return self.label
        slots = torch.arange(self.index.shape[1], device=self.index.device).expand_as(self.index)
        return torch.full((len(self.index), self.n), -1, device=self.index.device).scatter(
            1, self.index, slots
        )

    def matrix(self) -> Tensor:
        return F.one_hot(self.index, self.n).float()


@dataclass(frozen=True)
class Merge(Reduction):
    """Hard groups: every token goes to exactly one output, which is the mean of its group.

    Args:
        label: [B, N] int64 in [0, m), the group of each token. Every group has a member.
        m: number of groups, M.
        weight: [B, N], weight of each token within its group; by default all equal. ToMe passes the token sizes.
        mean: divide by the group's weight. EViT's fused token is a plain weighted sum.
    """

    label: Tensor
    m: int
    weight: Tensor | None = None
    mean: bool = True

    def pool(self, x: Tensor, prefix: int = 0) -> Tensor:
        # Sums of many bfloat16 tokens lose bits; groups are added in float32 and rounded once.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        label, m = _behind(self.label, prefix), self.m + prefix
        if self.weight is not None:
            weight = self.weight.to(wide.dtype)
            if self.mean:  # weights that sum to one in every group need no division of the features
                weight = weight / self.carry(weight.unsqueeze(-1)).squeeze(-1).gather(1, self.label)
            weight = torch.cat([weight.new_ones(len(weight), prefix), weight], dim=1)
            return sum_groups(wide * weight.unsqueeze(-1), label, m).to(x.dtype)
        total = sum_groups(wide, label, m)
        if self.mean:
            total = total / count_groups(label, m).to(wide.dtype).unsqueeze(-1)
        return total.to(x.dtype)

    def carry(self, mass: Tensor) -> Tensor:
        return sum_groups(mass, self.label, self.m)

    def labels(self) -> Tensor:
        return self.label

    def matrix(self) -> Tensor:
        member = F.one_hot(self.label, self.m).mT.float()
        weighted = member if self.weight is None else member * self.weight.float().unsqueeze(1)
        return weighted / weighted.sum(-1, keepdim=True) if self.mean else weighted


@dataclass(frozen=True)
class Mix(Reduction):
    """Soft assignment: every output is a weighted sum over all tokens.

    Args:
        weight: [B, M, N].
        value: [B, N, C], pooled instead of the tokens themselves (PatchMerger pools normalised tokens).
    """

    weight: Tensor
    value: Tensor | None = None

    def pool(self, x: Tensor, prefix: int = 0) -> Tensor:
        value = x[:, prefix:] if self.value is None else self.value
        mixed = torch.matmul(self.weight.to(value.dtype), value).to(x.dtype)
        return torch.cat([x[:, :prefix], mixed], dim=1) if prefix else mixed

    def carry(self, mass: Tensor) -> Tensor:
        return torch.matmul(self.shares().to(mass.dtype), mass)

    def shares(self) -> Tensor:
        """How each input token is shared out over the outputs, [B, M, N]: columns sum to one. A token with no weight goes to all alike."""
        weight = self.weight.float()
        total = weight.sum(1, keepdim=True)
        tiny = torch.finfo(weight.dtype).tiny
        return torch.where(total >= tiny, weight / total.clamp(min=tiny), 1 / weight.shape[1])

    def labels(self) -> Tensor:
        return self.weight.argmax(1)

    def matrix(self) -> Tensor:
        return self.weight

    def unmerge(self, y: Tensor) -> Tensor:
        return torch.matmul(self.shares().mT.to(y.dtype), y)


@dataclass(frozen=True)
class Mask(Reduction):
    """Every token stays in place and some are masked out of all later attention: how methods that drop tokens are trained.

    Never part of a reduced model at inference: it saves nothing. Gradients reach the decision through the mask.

    Args:
        alive: [B, N] float32, 1 where the token takes part, 0 where it is dropped.
    """

    alive: Tensor

    def pool(self, x: Tensor, prefix: int = 0) -> Tensor:
        return x

    def carry(self, mass: Tensor) -> Tensor:
        return mass * (self.alive.detach() > 0).unsqueeze(-1)

    def labels(self) -> Tensor:
        position = torch.arange(self.alive.shape[1], device=self.alive.device).expand(self.alive.shape)
        return torch.where(self.alive > 0, position, -1)

    def matrix(self) -> Tensor:
        return torch.diag_embed(torch.ones_like(self.alive))


def compose(reductions: Sequence[Reduction]) -> Tensor:
    """The source map of several stages in a row, [B, M, N0]: how much of each original token every final token holds."""
    if not reductions:
        raise ValueError(
            "compose() needs at least one reduction; an empty plan leaves every token where it is."
        )
    first = reductions[0].labels()
    source = torch.eye(first.shape[1], device=first.device).expand(len(first), -1, -1)
    for reduction in reductions:
        source = reduction.carry(source)
    return source


def compose_labels(reductions: Sequence[Reduction]) -> Tensor:
    """The final token of every original token, [B, N0]; -1 where it was dropped on the way."""
    labels = reductions[0].labels()
    for reduction in reductions[1:]:
        later = reduction.labels().gather(1, labels.clamp(min=0))
        labels = torch.where(labels < 0, labels, later)
    return labels


def unmerge(reductions: Sequence[Reduction], y: Tensor) -> Tensor:
    """Undo several stages: [B, M, C] features of the final tokens, back to [B, N0, C]."""
    for reduction in reversed(reductions):
        y = reduction.unmerge(y)
    return y


class Sizes:
    """Patches that each token stands for after a reduction, added up when first asked for: most models never ask.

    Args:
        before: sizes of the N tokens that went in, [B, N].
        reduction: what became of them.
    """

    def __init__(self, before: Tensor | Sizes, reduction: Reduction) -> None:
        self._before: Tensor | Sizes = before
        self._reduction = reduction
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """[B, M], float32."""
        if self._value is None:
            before = self._before.value if isinstance(self._before, Sizes) else self._before
            with torch.autocast(before.device.type, enabled=False):
                self._value = self._reduction.sizes(before)
        return self._value


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, M] of x [B, N, C], as [B, M, C]."""
    return x.flatten(0, 1).index_select(0, _flat(index, x.shape[1])).unflatten(0, index.shape)


def sum_groups(x: Tensor, label: Tensor, m: int, weight: Tensor | None = None) -> Tensor:
    """Sums of the rows of x [B, N, C] that carry each label, [B, m, C]; rows count `weight` [B, N] times.

    A group is added in the order of its rows, on every device, and rows are read once, in one pass: `scatter_add` takes 5 to 15 times
    as long on a CPU and adds in no fixed order on a GPU.
    """
    if x.shape[-1] == 1:  # one number a row
        weighted = x if weight is None else x * weight.unsqueeze(-1)
        return x.new_zeros(x.shape[0], m, 1).scatter_add(1, label.unsqueeze(-1), weighted)
    order = label.argsort(dim=1, stable=True)
    count = count_groups(label, m).flatten()
    start = count.cumsum(0) - count
    chosen = None if weight is None else weight.gather(1, order).flatten()
    total = F.embedding_bag(
        _flat(order, x.shape[1]), x.flatten(0, 1), start, mode="sum", per_sample_weights=chosen
    )
    return total.unflatten(0, (x.shape[0], m))


def count_groups(label: Tensor, m: int) -> Tensor:
    """How many of label [B, N] are 0, 1, ..., m - 1, [B, m] int64."""
    return label.new_zeros(label.shape[0], m).scatter_add(1, label, torch.ones_like(label))


def _flat(index: Tensor, n: int) -> Tensor:
    """Indices [B, M] into rows of [B, n, ...] as indices into [B * n, ...], [B * M]."""
    return (index + n * torch.arange(len(index), device=index.device).unsqueeze(1)).flatten()


def _behind(index: Tensor, prefix: int) -> Tensor:
    """Indices or labels of tokens, [B, M], behind those of the prefix, [B, P + M]."""
    if not prefix:
        return index
    return torch.cat(
        [torch.arange(prefix, device=index.device).expand(len(index), -1), index + prefix], dim=1
    )
