"""Stages and knobs: how many patch tokens a method keeps after each of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, get_args

from tokred.core import registry
from tokred.core.options import complete_options
from tokred.core.reducer import Reducer
from tokred.core.schedule import Layers
from tokred.errors import TokredError, UnknownName, did_you_mean
from tokred.utils.numbers import whole
from tokred.utils.text import spaced

Protocol = Literal["native", "common"]

COMMON_STAGES = (4, 7, 10)


@dataclass(frozen=True)
class Plan:
    """One reduced model on paper: which method, at which layers, how many patch tokens after each.

    Args:
        method: a registered name, or a class; "" for the empty plan, which is the dense model.
        stages: layers, one-based, ascending.
        tokens: patch tokens kept after each stage.
        options: the method's keyword arguments. The plan holds all of them, typed, with the defaults filled
            in.
        knob: the published knob of the uniform plan that this one is, or started from; None where there is
            none.
    """

    method: str | type[Reducer] = ""
    stages: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    knob: float | None = None

    def __post_init__(self) -> None:
        for name in ("stages", "tokens"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or not all(map(_is_whole, values)):
                raise TokredError(
                    f"The {name} of a plan are whole numbers, such as (4, 7, 10); got {values!r}."
                )
        if len(self.stages) != len(self.tokens):
            raise TokredError(
                f"A plan needs one token count per stage, got stages {self.stages} and tokens {self.tokens}."
            )
        if self.method:
            object.__setattr__(self, "options", complete_options(self.reducer, self.options))

    @property
    def reducer(self) -> type[Reducer]:
        return registry.get(self.method) if isinstance(self.method, str) else self.method


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def resolve_stages(
    cls: type[Reducer],
    depth: int,
    protocol: Protocol = "native",
    stages: Sequence[int] | Literal["all"] | None = None,
) -> tuple[int, ...]:
    """The layers at which a method reduces: `stages` where given, else by protocol.

    "native" takes the method's own published layers, "common" takes 4, 7, 10 for all. Layers beyond the
    model's depth are an error. "all" is every layer that has an attention to look at.
    """
    if protocol not in get_args(Protocol):
        raise UnknownName(did_you_mean("protocol", str(protocol), list(get_args(Protocol))))
    default = cls.stages if protocol == "native" else COMMON_STAGES
    chosen: Iterable[Any] = default if stages is None else stages
    if isinstance(chosen, str) and chosen == "all":
        # The layer before the first has no attention to look at.
        return tuple(range(1 if cls.site == "mid" else 2, depth + 1))
    try:
        layers = tuple(sorted({whole(layer) for layer in chosen}))
    except TypeError:
        raise TokredError(f"Stages are layer numbers, such as (4, 7, 10); got {chosen!r}.") from None
    if not layers or layers[0] < 1 or layers[-1] > depth:
        raise TokredError(
            f"Stages must be layers from 1 to {depth} of this model, got "
            f"{' '.join(map(str, layers)) or 'none'}; choose with --stages."
        )
    return layers


def uniform_counts(cls: type[Reducer], n: int, stages: int, knob: float) -> tuple[int, ...]:
    """Tokens kept after each stage at one value of the knob, clipped to what the method can reach.

    A "rate" counts from the start, int(n * rate^s), as the TokenReduction benchmark does. "removed" counts
    from stage to stage; a fraction, which no published schedule has, removes one more token at some stages
    than at others, evenly spread. At a "threshold" the counts depend on the image, and all may stay.
    """
    if cls.knob == "threshold":
        return (n,) * stages
    if cls.knob == "rate":
        return counts_at_rate(cls, n, stages, knob)

    def removed(stage: int, current: int) -> int:
        return current - (math.floor(knob * stage) - math.floor(knob * (stage - 1)))

    return _clipped(cls, n, stages, removed)


def counts_at_rate(cls: type[Reducer], n: int, stages: int, rate: float) -> tuple[int, ...]:
    """Tokens kept after each stage, int(n * rate^s), clipped to what the method can reach."""
    return _clipped(cls, n, stages, lambda stage, _: int(n * rate**stage) + cls.extra)


def decreasing_counts(cls: type[Reducer], n: int, stages: int, total: int) -> tuple[int, ...]:
    """Tokens kept after each stage if each removes fewer than the one before, in proportion S, S - 1, ... 1.

    >>> from tokred.core import registry
    >>> decreasing_counts(registry.get("topk"), 196, 3, 60)
    (166, 146, 136)

    Args:
        cls: the method; a stage that would remove more than it can removes what it can.
        n: patch tokens before the first stage.
        stages: number of stages, S.
        total: tokens that all stages together remove.
    """
    parts = [stage * (2 * stages + 1 - stage) for stage in range(stages + 1)]  # S + (S - 1) + ..., twice
    sums = [total * part // parts[-1] for part in parts]
    wanted = sorted((after - before for before, after in pairwise(sums)), reverse=True)
    counts, most = [], n
    for removed in wanted:
        most = min(most, removed, n - cls.floor(n))
        n -= most
        counts.append(n)
    return tuple(counts)


def stages_text(stages: Layers | None) -> str | None:
    """Layers as --stages takes them; None for None."""
    return stages if stages is None or isinstance(stages, str) else spaced(stages)


def _clipped(cls: type[Reducer], n: int, stages: int, wanted: Callable[[int, int], int]) -> tuple[int, ...]:
    """Counts after each stage, wanted(stage, tokens before it), within what the method can reach."""
    counts, current = [], n
    for stage in range(1, stages + 1):
        current = min(current, max(wanted(stage, current), cls.floor(current)))
        counts.append(current)
    return tuple(counts)


def floor_counts(cls: type[Reducer], n: int, stages: int) -> tuple[int, ...]:
    """The fewest tokens that the method can leave at each stage."""
    counts = []
    for _ in range(stages):
        n = cls.floor(n)
        counts.append(n)
    return tuple(counts)
