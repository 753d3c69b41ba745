"""Named configurations: YAML files in this folder, found by name from anywhere, or a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tokred.errors import TokredError, UnknownName, did_you_mean

FOLDER = Path(__file__).parent

T = TypeVar("T", bound=BaseModel)


def names(kind: str) -> list[str]:
    """Names of the configurations of one kind ("compare", "fit" or "train") that tokred ships."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def find(kind: str, name: str) -> dict[str, Any] | None:
    """A shipped configuration, or None."""
    return load(kind, name) if name in names(kind) else None


def load(kind: str, name: str) -> dict[str, Any]:
    """The mapping in a shipped configuration or in a YAML file.

    Raises:
        TokredError: no such configuration, or not a YAML mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / kind / f"{name}.yaml"
    if not path.is_file():
        raise UnknownName(did_you_mean("configuration", name, names(kind)))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise TokredError(
            f"The configuration {path} cannot be read: {str(error).splitlines()[0]}."
        ) from error
    if not isinstance(values, dict):
        raise TokredError(f"The configuration {path} must be a mapping of names to values.")
    return values


def parse(schema: type[T], values: dict[str, Any], origin: str) -> T:
    """Validate a mapping.

    Raises:
        TokredError: one sentence about the first value that is wrong.
    """
    try:
        return schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise TokredError(
            f"In {origin}, {where} is wrong: {first['msg'].lower()} (got {first.get('input')!r})."
        ) from error
