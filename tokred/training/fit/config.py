"""The configuration of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokred.core.plan import Protocol, stages_text
from tokred.core.schedule import Layers
from tokred.training.fit.recipe import FitRecipe
from tokred.utils.text import plain_name


@dataclass(frozen=True)
class FitConfig:
    """The configuration of a fit.

    Attributes:
        method: name of a registered method.
        recipe: length, optimiser and loss.
        model: name of a model of tokred or timm.
        budget: fraction of FLOPs to save; None fits for any budget.
        options: options of the method.
        protocol: "native" or "common" stages.
        stages: layers, or "all", instead of the protocol's.
        data: images, as for `compare`; None for PhotoDigits.
        weights: a file or "hf-hub:owner/name"; by default as for `compare`.
        labels: whether to use the labels of the data.
        device: "auto", "cpu", "cuda" ...
        precision: "auto", "fp32" or "bf16".
        chunk: number of images in a forward pass, by default 16 on a CPU and 256 elsewhere; gradients are
            summed over a batch.
        workers: number of processes that load images.
        img_size: side of the model's input in pixels; by default the model's own.
    """

    method: str
    recipe: FitRecipe
    model: str = "deit_s"
    budget: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol = "native"
    stages: Layers | None = None
    data: str | None = None
    weights: str | None = None
    labels: bool = True
    device: str = "auto"
    precision: str = "auto"
    chunk: int | None = None
    workers: int = 1
    img_size: int | None = None

    @property
    def folder(self) -> str:
        """The default name of the output folder."""
        parts = ["fit", plain_name(self.model), self.method]
        parts += [f"{key}={value}" for key, value in sorted(self.options.items())]
        parts += [] if self.protocol == "native" else [self.protocol]
        parts += [] if self.stages is None else ["layers", *str(stages_text(self.stages)).split()]
        parts += [Path(path).stem for path in (self.data, self.weights) if path is not None]
        parts += [] if self.img_size is None else [f"{self.img_size}px"]
        budget = "any" if self.budget is None else f"{self.budget:g}"
        return "-".join([*parts, "full" if self.recipe.full else "reducer", budget])
