"""What to compare: everything that decides a comparison's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokred import registry
from tokred.errors import TokredError, UnknownName
from tokred.schedule import Protocol


@dataclass(frozen=True)
class Config:
    """What to compare. Everything here decides the numbers; where they are written does not.

    Attributes:
        model: a name of tokred or timm.
        budget: fraction of FLOPs to save.
        methods: names; by default all registered.
        options: of methods, {"lotm": {"order": "append"}}.
        protocol: "native" or "common" stages.
        stages: layers for all methods, in place of the protocol's.
        data: folder or timm data set; None for PhotoDigits.
        split: of the data.
        weights: a file; by default the shipped weights for PhotoDigits, timm's pretrained ones elsewhere.
        limit: evaluate only the first images.
        seed: of the random control and of the intervals.
        device: "auto", "cpu", "cuda" ...
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: images that run together; by default 16 on a CPU, whose caches hold that much, and 256 elsewhere.
        adapters: files or folders of fitted parameters, looked through before those that tokred ships.
        allow_unfitted: show learned methods without an adapter too, with random parameters.
    """

    model: str = "deit_s"
    budget: float = 0.3
    methods: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    protocol: Protocol = "native"
    stages: tuple[int, ...] | None = None
    data: str | None = None
    split: str | None = None
    weights: str | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    adapters: tuple[str, ...] = ()
    allow_unfitted: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.budget < 1:
            raise TokredError(f"--budget is the fraction of FLOPs to save, between 0 and 1, such as 0.3 for 30 %; got {self.budget:g}.")
        if self.limit is not None and self.limit < 1:
            raise TokredError(f"--limit is the number of images to evaluate and must be at least 1, got {self.limit}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise TokredError(f"--batch-size is the number of images that run together and must be at least 1, got {self.batch_size}.")
        if not 0 <= self.seed < 2**32:
            raise TokredError(f"--seed must lie between 0 and {2**32 - 1}, got {self.seed}.")
        if self.stages is not None and not self.stages:
            raise TokredError('--stages needs at least one layer, such as "4 7 10".')


def method_names(config: Config) -> list[str]:
    """The methods that a configuration asks for, all of them by default; unknown names are an error."""
    known = registry.names()
    names = list(dict.fromkeys(config.methods)) or known
    for name in (*names, *config.options):
        if name not in known:
            raise UnknownName(registry.unknown("method", name, known))
    return names
