"""Parsing the values of options, and options in groups."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from tokred.core.schedule import Layers
from tokred.errors import TokredError


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that Typer sees the fields of its groups of options as parameters."""

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        command(**_arguments(command, values))

    parameters = list(_parameters(command))
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _parameters(target: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The parameters of a command or group, with the fields of its groups instead of these."""
    hints = get_type_hints(target, include_extras=True)
    for name, parameter in inspect.signature(target).parameters.items():
        if is_dataclass(hints[name]):
            yield from _parameters(hints[name])
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])


def _arguments(target: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command or group, from the values of all parameters."""
    hints: dict[str, Any] = get_type_hints(target)
    return {
        name: hints[name](**_arguments(hints[name], values)) if is_dataclass(hints[name]) else values[name]
        for name in inspect.signature(target).parameters
    }


_COMMA = re.compile(r",(?![^\[]*\])")  # not within brackets


def parse_names(text: str | None) -> tuple[str, ...]:
    """Parse comma-separated names, such as "lotm,tome[metric=x,split=alternate]"; none for None."""
    return tuple(name.strip() for name in _COMMA.split(text or "") if name.strip())


def parse_numbers(text: str | None, option: str, expected: str) -> tuple[int, ...] | None:
    """Parse whole numbers such as "4 7 10" or "4,7,10", the value of an option; None for None.

    Raises:
        TokredError: they are not whole numbers; the message says what was expected.
    """
    try:
        return None if text is None else tuple(int(number) for number in text.replace(",", " ").split())
    except ValueError:
        raise TokredError(f"{option} takes {expected}; got {text!r}.") from None


LAYERS = 'layer numbers, such as "4 7 10"'


def parse_layers(text: str | None) -> Layers | None:
    """Parse the layers that --stages takes, or "all"; see `parse_numbers`."""
    return "all" if text == "all" else parse_numbers(text, "--stages", f"{LAYERS}, or all")


def parse_settings(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """Parse settings such as "lotm.order=append" into options by method.

    Raises:
        TokredError: a setting has another form.
    """
    options: dict[str, dict[str, Any]] = {}
    for setting in settings or []:
        target, equals, value = setting.partition("=")
        method, dot, name = target.partition(".")
        if not (equals and dot and method and name):
            raise TokredError(f"--set takes METHOD.OPTION=VALUE, such as lotm.order=append; got {setting!r}.")
        options.setdefault(method, {})[name] = value
    return options
