"""Comparisons as YAML files: `tokred compare --config`, and the config.yaml of every run."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokred import configs
from tokred.errors import InvalidSetting, TokredError, UnknownName, did_you_mean
from tokred.evaluation.config import Config
from tokred.utils.text import visible

NAME = "config.yaml"
_HEADER = "# The configuration of this run. To run it again: tokred compare --config {path}\n"


def read_config(name: str) -> Config:
    """Read the configuration of a comparison by its name or from a YAML file.

    Raises:
        TokredError: there is no such configuration, or it has a mistake; the message names the line.
    """
    values = configs.load("compare", name)

    def place(keys: tuple[Any, ...]) -> str:
        return configs.place("compare", name, keys)

    known = [field.name for field in fields(Config)]
    for key in values:
        if key not in known:
            raise UnknownName(f"In {place((key,))}: {did_you_mean('setting', str(key), known)}")
    try:
        return Config.from_mapping(values)
    except InvalidSetting as error:
        cause = error.__cause__
        keys = cause.errors()[0]["loc"] if isinstance(cause, ValidationError) else (error.setting,)
        raise TokredError(f"In {place(keys)}: {error}") from error
    except TokredError as error:
        raise TokredError(f"In {place(())}: {error}") from error


def config_text(config: Config, path: Path) -> str:
    """The contents of a run's config.yaml, for `read_config`: all settings, including defaults."""
    return _HEADER.format(path=visible(shlex.quote(str(path)))) + configs.dump(config.to_mapping())
