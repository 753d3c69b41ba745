"""What to compare: everything that decides a comparison's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tokred.core import registry
from tokred.core.plan import Protocol
from tokred.data.loading import OnError
from tokred.errors import TokredError, UnknownName, did_you_mean
from tokred.utils.text import spaced

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


@dataclass(frozen=True)
class Fixed:
    """A method at a value of its published knob, whatever that saves: how papers state what they ran.

    Attributes:
        method: a registered name.
        knob: tokens removed at each stage, or keep rate, whichever the method's knob is.
        stages: layers, one-based; None for the protocol's.
    """

    method: str
    knob: float
    stages: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Of the method's outcomes."""
        return f"{self.method}@{self.knob:g}" + ("" if self.stages is None else f"@{spaced(self.stages)}")


@dataclass(frozen=True)
class Config:
    """What to compare. Everything here decides the numbers; where they are written does not.

    Attributes:
        model: a name of tokred or timm, with or without the tag of its weights, or "hf-hub:owner/name".
        budgets: fractions of FLOPs to save.
        methods: names; by default all registered.
        options: of methods, {"lotm": {"order": "append"}}.
        protocol: "native" or "common" stages.
        stages: layers for all methods, in place of the protocol's.
        data: folder or timm data set; None for PhotoDigits.
        split: of the data.
            labels: use the labels of the data; without them methods are compared with the unreduced model.
        class_map: a file that says which class each label is.
        devkit: the labels of ImageNet's validation files, where they lie in one folder; by default looked for beside them.
        data_dir: where a data set that has a name in timm lies.
        img_size: side of the model's input in pixels; by default the model's own.
        crop_pct: how much of the resized image's side is seen; by default as the model wants it, and 1 for PhotoDigits.
        interpolation: of the resizing; by default as the model wants it.
        weights: a file or "hf-hub:owner/name"; by default the shipped weights for PhotoDigits, timm's pretrained ones elsewhere.
            limit: evaluate only the first images.
        seed: of the random control and of the intervals.
        device: "auto", "cpu", "cuda" ...
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: images that run together; by default 16 on a CPU, whose caches hold that much, and 256 elsewhere.
        adapters: files or folders of fitted parameters or published checkpoints, looked through before those that tokred ships.
        allow_unfitted: show learned methods without an adapter too, with random parameters.
        on_error: what an unreadable image does: "fail" the run, "skip" it, or "count-wrong" for all models.
        controls: add what every method must beat: random, and dense models of lower resolution and of smaller size.
        fixed: methods at a knob, in addition to those at the budgets.
    """

    model: str = "deit_s"
    budgets: tuple[float, ...] = (0.3,)
    methods: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    protocol: Protocol = "native"
    stages: tuple[int, ...] | None = None
    data: str | None = None
    split: str | None = None
    labels: bool = True
    class_map: str | None = None
    devkit: str | None = None
    data_dir: str | None = None
    img_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    weights: str | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    adapters: tuple[str, ...] = ()
    allow_unfitted: bool = False
    on_error: OnError = "fail"
    controls: bool = True
    fixed: tuple[Fixed, ...] = ()

    def __post_init__(self) -> None:
        if not self.budgets and not self.fixed:
            raise TokredError("There is no budget to compare at; give at least one, such as 0.3.")
        object.__setattr__(self, "budgets", tuple(dict.fromkeys(self.budgets)))
        for budget in self.budgets:
            if not 0 < budget < 1:
                raise TokredError(
                    f"--budget is the fraction of FLOPs to save, between 0 and 1, such as 0.3 for 30 %; got {budget:g}."
                )
        if self.limit is not None and self.limit < 1:
            raise TokredError(
                f"--limit is the number of images to evaluate and must be at least 1, got {self.limit}."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise TokredError(
                f"--batch-size is the number of images that run together and must be at least 1, got {self.batch_size}."
            )
        self._check_pixels()
        if not 0 <= self.seed < 2**32:
            raise TokredError(f"--seed must lie between 0 and {2**32 - 1}, got {self.seed}.")
        if self.stages is not None and not self.stages:
            raise TokredError('--stages needs at least one layer, such as "4 7 10".')
        if self.on_error not in get_args(OnError):
            raise TokredError(did_you_mean("--on-error", self.on_error, list(get_args(OnError))))

    def _check_pixels(self) -> None:
        if self.img_size is not None and self.img_size < 1:
            raise TokredError(
                f"--img-size is the side of the model's input in pixels and must be at least 1, got {self.img_size}."
            )
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise TokredError(
                f"--crop-pct is a fraction of the resized image's side, above 0 and at most 1, got {self.crop_pct:g}."
            )
        if self.interpolation is not None and self.interpolation not in get_args(Interpolation):
            raise TokredError(
                did_you_mean("--interpolation", self.interpolation, list(get_args(Interpolation)))
            )


def method_names(config: Config) -> list[str]:
    """The methods that a configuration asks for, all of them by default; unknown names are an error."""
    known = registry.names()
    names = list(dict.fromkeys(config.methods)) or known
    for name in (*names, *config.options, *(fixed.method for fixed in config.fixed)):
        if name not in known:
            raise UnknownName(did_you_mean("method", name, known))
    return names


def budget_range(text: str) -> tuple[float, ...]:
    """Budgets from "0.1:0.6:0.1" (first, last, step; the last one belongs to them) or "0.2,0.3".

    Raises:
        TokredError: it is neither.
    """
    try:
        if ":" not in text:
            return tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
        first, last, step = (float(part) for part in text.split(":"))
        count = round((last - first) / step)
        if count < 0 or abs(first + count * step - last) > 1e-9:
            raise ValueError
        return tuple(round(first + i * step, 9) for i in range(count + 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise TokredError(
            f"--budgets takes FIRST:LAST:STEP, such as 0.1:0.6:0.1, or budgets such as 0.2,0.3; got {text!r}."
        ) from None
