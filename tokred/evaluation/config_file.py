"""Comparisons as YAML files: `tokred compare --config`, and the config.yaml of every run."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from tokred import configs
from tokred.evaluation.config import Config
from tokred.utils.text import visible

NAME = "config.yaml"
_HEADER = "# The configuration of this run. To run it again: tokred compare --config {path}\n"


def read_config(name: str) -> Config:
    """Read the configuration of a comparison by its name or from a YAML file.

    Raises:
        TokredError: there is no such configuration, or it has a mistake; the message names the line.
    """
    known = [field.name for field in fields(Config)]
    return configs.read("compare", name, known, Config.from_mapping)


def config_text(config: Config, path: Path) -> str:
    """The contents of a run's config.yaml, for `read_config`: all settings, including defaults."""
    return _HEADER.format(path=visible(shlex.quote(str(path)))) + configs.dump(config.to_mapping())
