"""Options in groups, and the configuration of a comparison from them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tokred.commands.options import (
    Adapters,
    AllowUnfitted,
    BatchSize,
    Calibration,
    ClassMap,
    CropPct,
    Data,
    DataDir,
    Device,
    Devkit,
    Format,
    ImgSize,
    InterpolationName,
    Labels,
    Limit,
    Methods,
    Model,
    NoControls,
    OnErrorName,
    Plugins,
    PrecisionName,
    ProtocolName,
    Results,
    Rounds,
    ScheduleName,
    Seed,
    Settings,
    Split,
    Stages,
    Tokens,
    Weights,
    Workers,
)
from tokred.commands.parsing import parse_layers, parse_names, parse_numbers, parse_settings
from tokred.core import registry
from tokred.core.schedule import choose
from tokred.errors import TokredError

if TYPE_CHECKING:
    from tokred.evaluation.config import Config


@dataclass(frozen=True)
class ReductionOptions:
    """Options of methods, and the layers at which they reduce."""

    protocol: ProtocolName = "native"
    stages: Stages = None
    settings: Settings = None
    plugins: Plugins = None

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`, once the methods of plugins are registered."""
        load(self.plugins)
        return {
            "options": parse_settings(self.settings),
            "protocol": self.protocol,
            "stages": parse_layers(self.stages),
        }

    def fields_of(self, method: str, action: str) -> dict[str, Any]:
        """`fields` with the options of one method, on which the command does the `action`, such as "fits".

        Raises:
            TokredError: there is an option of another method.
        """
        fields = self.fields()
        options = fields["options"]
        for other in options.keys() - {method}:
            name = f"{other}.{next(iter(options[other]))}"
            raise TokredError(f"--set {name} is an option of another method; this command {action} {method}.")
        return {**fields, "options": options.get(method, {})}


@dataclass(frozen=True)
class ScheduleOptions(ReductionOptions):
    """Options of methods, and the layers and token counts at which they reduce."""

    schedule: ScheduleName = None
    tokens: Tokens = None

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`, once the methods of plugins are registered."""
        tokens = parse_numbers(self.tokens, "--tokens", 'numbers of tokens, such as "150 115 89"')
        return {**super().fields(), "schedule": choose(self.schedule, tokens)}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The methods, and how they reduce."""

    methods: Methods = None
    reduction: ScheduleOptions

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`, once the methods of plugins are registered."""
        methods = None if self.methods is None else parse_names(self.methods)
        plugins = tuple(self.reduction.plugins or ())
        return {**self.reduction.fields(), "methods": methods, "plugins": plugins}


@dataclass(frozen=True)
class ImageOptions:
    """The images and the weights."""

    data: Data = None
    split: Split = None
    labels: Labels = True
    class_map: ClassMap = None
    devkit: Devkit = None
    data_dir: DataDir = None
    img_size: ImgSize = None
    crop_pct: CropPct = None
    interpolation: InterpolationName = None
    weights: Weights = None
    limit: Limit = None
    on_error: OnErrorName = "fail"

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class FittedOptions:
    """The parameters of learned methods, and the images on which thresholds are set."""

    adapters: Adapters = None
    allow_unfitted: AllowUnfitted = False
    calibration: Calibration = None

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`."""
        return {
            "adapters": tuple(self.adapters or ()),
            "allow_unfitted": self.allow_unfitted,
            "calibration": None if self.calibration is None else str(self.calibration),
        }


@dataclass(frozen=True)
class RowOptions(FittedOptions):
    """The controls, and the parameters of learned methods."""

    no_controls: NoControls = False

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`."""
        return {**super().fields(), "controls": not self.no_controls}


@dataclass(frozen=True)
class RunOptions:
    """Seed and hardware."""

    seed: Seed = 0
    device: Device = "auto"
    precision: PrecisionName = "auto"
    batch_size: BatchSize = None

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`."""
        return vars(self)


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """The options that `compare` and `sweep` share."""

    model: Model = "deit_s"
    plans: PlanOptions
    images: ImageOptions
    rows: RowOptions
    how: RunOptions
    folder: Results = None
    workers: Workers = None
    bench: Rounds = 0
    form: Format = "table"

    def configuration(self, budgets: tuple[float, ...]) -> Config:
        """The configuration at some budgets.

        Raises:
            TokredError: it is invalid.
        """
        return configuration(self.model, budgets, self.plans, self.images, self.rows, self.how)


_FLAGS = {
    "budgets": "--budget",
    "options": "--set",
    "labels": "--no-labels",
    "controls": "--no-controls",
    "fixed": "fixed",
}


def flag(setting: str) -> str:
    """The flag of a setting of `Config`; a setting without one keeps its name."""
    return _FLAGS.get(setting, f"--{setting.replace('_', '-')}")


def configuration(model: str, budgets: tuple[float, ...], *groups: Any) -> Config:
    """The configuration from groups of options.

    Raises:
        TokredError: it is invalid.
    """
    from tokred.evaluation.config import Config

    return Config(
        model=model,
        budgets=budgets,
        **functools.reduce(lambda all, group: all | group.fields(), groups, dict[str, Any]()),
    )


_FIELDS = {
    "budget": "budgets",
    "settings": "options",
    "no_controls": "controls",
    "tokens": "schedule",
}


def configured(config: Config, flags: Config, context: typer.Context) -> Config:
    """The configuration named by `--config`, with the settings that were given as flags replaced.

    Args:
        config: the configuration that was read.
        flags: the configuration made from the flags, including defaults.
        context: the context of the command, which knows the flags that were given.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    on_command_line = {
        _FIELDS.get(parameter, parameter)
        for parameter, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    }
    changes = {
        field.name: getattr(flags, field.name) for field in fields(config) if field.name in on_command_line
    }
    if "options" in changes:
        methods = {**config.options, **changes["options"]}
        changes["options"] = {
            method: {**config.options.get(method, {}), **flags.options.get(method, {})} for method in methods
        }
    if "schedule" in changes and flags.counts.tokens is not None:
        changes["budgets"] = flags.budgets
    if "plugins" in changes:
        changes["plugins"] = tuple(dict.fromkeys((*config.plugins, *flags.plugins)))
    return replace(config, **changes)


def load(plugins: list[str] | None) -> None:
    """Register the methods of `--plugin`; call it before names of methods are checked."""
    for target in plugins or []:
        registry.load_plugin(target)
