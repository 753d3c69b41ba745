"""The configuration of a comparison: everything that determines its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import TypeAdapter

from tokred import configs
from tokred.core import registry, schedule
from tokred.core.options import typed_options
from tokred.core.plan import Protocol
from tokred.core.schedule import UNIFORM, Layers, Schedule
from tokred.data.loading import OnError
from tokred.errors import InvalidSetting, TokredError, UnknownName, did_you_mean
from tokred.models.zoo import check_img_size
from tokred.utils import numbers
from tokred.utils.text import spaced

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

PLACES = ("data", "weights", "class_map", "devkit", "data_dir", "plugins", "calibration")
"""Settings that are paths. The contents determine the results, wherever they are stored."""

RANDOM = "random"
_MAX_BUDGETS = 100


@dataclass(frozen=True)
class Fixed:
    """A method at a value of its published knob, whatever that saves; papers report results in this form.

    Attributes:
        method: a registered name.
        knob: tokens removed at each stage, or keep rate, whichever the method's knob is.
        stages: layers, one-based; None for the protocol's.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for `Config.from_mapping`

    method: str
    knob: float
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "knob", float(self.knob))  # 40 and 40.0 are one run

    @property
    def name(self) -> str:
        """The name of its predictions."""
        return f"{self.method}@{self.knob:g}" + ("" if self.stages is None else f"@{spaced(self.stages)}")


@dataclass(frozen=True)
class Config:
    """The configuration of a comparison: everything that determines its results.

    Attributes:
        model: a name of tokred or timm, with or without the tag of its weights, or "hf-hub:owner/name".
        budgets: fractions of FLOPs to save.
        methods: names of methods and groups of them (`tokred methods` lists both), kept as names of methods;
            by default those of the group "core". A variant has its options in brackets: "lotm[curve=snake]".
        options: options of methods, such as {"lotm": {"order": "append"}}; text is converted to values.
        protocol: "native" or "common" stages.
        stages: layers for all methods, one-based, or "all"; instead of the protocol's.
        schedule: layers and token counts for all methods; by default uniform ones that meet the budgets. With
            token counts there are no budgets.
        data: folder or timm data set; None for PhotoDigits.
        split: split of the data.
        labels: whether to use the labels of the data; without them methods are compared with the dense model.
        class_map: a file that maps the labels of the data to classes of the model.
        devkit: the labels of ImageNet's validation files if these are in one folder; by default they are
            searched for next to the images.
        data_dir: the folder of a timm data set.
        img_size: side of the model's input in pixels; by default the model's own.
        crop_pct: visible fraction of the resized image's side; by default the model's, and 1 for PhotoDigits.
        interpolation: how images are resized; by default the model's own.
        weights: a file or "hf-hub:owner/name"; by default the shipped weights for PhotoDigits, and timm's
            pretrained ones elsewhere.
        limit: number of images to evaluate, the first ones; None for all.
        seed: seed of the random control and of the intervals.
        device: "auto", "cpu", "cuda" ...
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: number of images in a batch; by default 16 on a CPU and 256 elsewhere.
        adapters: files or folders of fitted parameters or foreign checkpoints, preferred to the adapters that
            tokred ships.
        allow_unfitted: whether to evaluate learned methods without an adapter with random parameters.
        on_error: how to treat unreadable images: "fail", "skip", or "count-wrong" (for all models).
        controls: whether to add the controls: random, and dense models of lower resolution and of smaller
            size.
        fixed: methods at a knob, in addition to those at the budgets.
        calibration: folder or timm data set of training or unlabelled images, on which thresholds are set of
            methods whose counts depend on the image; by default PhotoDigits' training images for PhotoDigits.
        plugins: Python files or modules that register methods; they are imported.

    Raises:
        TokredError: a value is invalid, or a method or option is unknown.
    """

    model: str = "deit_s"
    budgets: tuple[float, ...] = (0.3,)
    methods: tuple[str, ...] | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    protocol: Protocol = "native"
    stages: Layers | None = None
    schedule: Schedule | None = None
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
    calibration: str | None = None
    plugins: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Make a configuration from names and values, such as those of a YAML file; others have defaults.

        Raises:
            TokredError: a name is unknown, or a value has the wrong type or is invalid.
        """
        configs.check_keys(values, [field.name for field in fields(cls)])
        plain = {name: _plain(value) for name, value in values.items()}
        if isinstance(plain.get("budgets"), (int, float, str)):
            plain["budgets"] = [plain["budgets"]]
        if plain.get("schedule") is not None:
            try:
                plain["schedule"] = schedule.load(plain["schedule"])
            except TokredError as error:
                raise InvalidSetting("schedule", f"{{}}: {error}") from error
        return configs.validated(_SCHEMA, plain)

    def to_mapping(self) -> dict[str, Any]:
        """All settings, including defaults, as JSON and YAML store them; the inverse of `from_mapping`."""
        mapping: dict[str, Any] = _plain(asdict(self))
        return mapping

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if getattr(self, field_.name) == "" and field_.default is not MISSING:
                raise InvalidSetting(field_.name, "{} is empty; leave it out, or give a value.")
        for plugin in self.plugins:
            registry.load_plugin(plugin)
        object.__setattr__(self, "budgets", tuple(dict.fromkeys(self.budgets)))
        self._check_schedule()
        self._check_budgets()
        self._check_numbers()
        self._check_fixed()
        for name, choices in (
            ("on_error", OnError),
            ("interpolation", Interpolation),
            ("protocol", Protocol),
        ):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise InvalidSetting(name, did_you_mean("{}", value, list(get_args(choices))))
        object.__setattr__(self, "methods", self._checked_methods())
        object.__setattr__(self, "options", self._checked_options())

    @property
    def counts(self) -> Schedule:
        """The schedule; uniform by default."""
        return self.schedule or UNIFORM

    @property
    def layers(self) -> Layers | None:
        """The layers for all methods, those of the schedule included; None for the protocol's."""
        return self.counts.stages if self.stages is None else self.stages

    def _check_schedule(self) -> None:
        """Check the schedule against the other settings; its token counts take the place of the budgets."""
        name = self.counts.name
        if self.counts.model is not None:
            from tokred.models import zoo  # timm takes a second to import

            zoo.check_made_for(self.counts, self.model)
        if self.stages is not None and self.counts.stages not in (None, self.stages):
            raise InvalidSetting("stages", f"{{}} must be left out: the schedule {name} has its own layers.")
        if self.counts.tokens is not None:
            if self.budgets not in ((), type(self).budgets):
                raise InvalidSetting(
                    "budgets",
                    f"{{}} must be left out: the {name} schedule sets the numbers of tokens.",
                )
            object.__setattr__(self, "budgets", ())

    def _check_budgets(self) -> None:
        if not self.budgets and not self.fixed and self.counts.tokens is None:
            raise InvalidSetting(
                "budgets", "{} is empty; give at least one budget to compare at, such as 0.3."
            )
        if len(self.budgets) > _MAX_BUDGETS:
            count = len(self.budgets)
            raise InvalidSetting("budgets", f"{{}} takes at most {_MAX_BUDGETS} budgets, got {count}.")
        for budget in self.budgets:
            if not 0 < budget < 1:
                raise InvalidSetting(
                    "budgets",
                    "{} is the fraction of FLOPs to save, between 0 and 1, such as 0.3 for 30 %; "
                    f"got {budget:g}.",
                )

    def _check_numbers(self) -> None:
        least = {
            "limit": "the number of images to evaluate",
            "batch_size": "the number of images in a batch",
        }
        for name, meaning in least.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSetting(name, f"{{}} is {meaning} and must be at least 1, got {value}.")
        if (self.batch_size or 0) > numbers.MOST_IMAGES_TOGETHER:
            most = f"{numbers.MOST_IMAGES_TOGETHER:,}"
            raise InvalidSetting("batch_size", f"{{}} is at most {most} images, got {self.batch_size}.")
        check_img_size(self.img_size)
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise InvalidSetting(
                "crop_pct",
                "{} is a fraction of the resized image's side, above 0 and at most 1, "
                f"got {self.crop_pct:g}.",
            )
        if not 0 <= self.seed < 2**32:
            raise InvalidSetting("seed", f"{{}} must lie between 0 and {2**32 - 1}, got {self.seed}.")
        if self.stages is not None and not self.stages:
            raise InvalidSetting("stages", '{} needs at least one layer, such as "4 7 10".')

    def _check_fixed(self) -> None:
        for fixed in self.fixed:
            if fixed.stages is not None and not fixed.stages:
                raise InvalidSetting(
                    "fixed", f"{{}} gives {fixed.method} no layers; leave out its stages, or give some."
                )
            if fixed.method not in registry.names():
                raise UnknownName(did_you_mean("method", fixed.method, registry.names()))

    def _checked_methods(self) -> tuple[str, ...]:
        """The names of the methods without repetition; for None, the core ones."""
        if self.methods is None:
            return tuple(registry.select())
        if not self.methods:
            raise InvalidSetting("methods", "{} is empty; leave it out to compare the core methods.")
        return tuple(registry.select(self.methods))

    def _checked_options(self) -> dict[str, dict[str, Any]]:
        """The options of each method as values of their types."""
        compared = {*(self.methods or ()), *(fixed.method for fixed in self.fixed)}
        compared |= {RANDOM} if self.controls and (self.budgets or self.counts.tokens) else set()
        for name in self.options:
            if name not in registry.names():
                raise UnknownName(did_you_mean("method", name, registry.names()))
            if name not in compared:
                raise InvalidSetting("options", f"{{}} sets an option of {name}, which is not compared.")
        return {name: typed_options(registry.get(name), chosen) for name, chosen in self.options.items()}


_SCHEMA = TypeAdapter(Config)


def _plain(value: Any) -> Any:
    """A value as JSON and YAML store it: lists instead of tuples, text instead of paths."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (Fixed, Schedule)):
        return _plain(asdict(value))
    return str(value) if isinstance(value, Path) else value


def budget_range(text: str) -> tuple[float, ...]:
    """Parse budgets such as "0.1:0.6:0.1" (first, last, step; the last is included) or "0.2,0.3".

    Raises:
        TokredError: the text has another form, or gives too many budgets.
    """
    try:
        if ":" not in text:
            return tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
        first, last, step = (float(part) for part in text.split(":"))
        count = round((last - first) / step)
        if count < 0 or abs(first + count * step - last) > 1e-9:
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise TokredError(
            f"--budgets takes FIRST:LAST:STEP, such as 0.1:0.6:0.1, or budgets such as 0.2,0.3; got {text!r}."
        ) from None
    if count >= _MAX_BUDGETS:
        raise TokredError(f"--budgets takes at most {_MAX_BUDGETS} budgets, got {count + 1} in {text!r}.")
    return tuple(round(first + i * step, 9) for i in range(count + 1))
