"""Named configurations: YAML files in this folder, found by name from anywhere, or a path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tokred.errors import InvalidSetting, TokredError, UnknownName, did_you_mean

FOLDER = Path(__file__).parent
_MOST = 10_000

T = TypeVar("T", bound=BaseModel)
S = TypeVar("S")


def names(kind: str) -> list[str]:
    """Names of the configurations of one kind ("compare", "fit", "schedules", "train") that tokred ships."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def summary(kind: str, name: str) -> str:
    """What a shipped configuration is for: the comment in its first line."""
    first = (FOLDER / kind / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find(kind: str, name: str) -> dict[str, Any] | None:
    """A shipped configuration, or None."""
    return load(kind, name) if name in names(kind) else None


def load(kind: str, name: str) -> dict[str, Any]:
    """The mapping in a shipped configuration or in a YAML file.

    Raises:
        TokredError: no such configuration, or not a YAML mapping.
    """
    path = _path(kind, name)
    try:
        text = path.read_text(encoding="utf-8")
        _check_unique(yaml.compose(text, Loader=yaml.SafeLoader))
        values = yaml.safe_load(text)
        _check_size(values)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = "" if mark is None else f"line {mark.line + 1}: "
        reason = f"{place}{problem or str(error).splitlines()[0]}"
        raise TokredError(f"The configuration {path} cannot be read: {reason}.") from error
    if not isinstance(values, dict):
        raise TokredError(f"The configuration {path} must be a mapping of names to values.")
    return values


def _check_unique(node: yaml.Node | None) -> None:
    """Raise a ValueError if a key stands twice in a mapping, of which YAML would take the last value."""
    waiting, seen = [node], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in keys:
                    raise ValueError(f"line {key.start_mark.line + 1}: {key.value} is set twice")
                keys.add(key.value)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)


def _check_size(values: Any) -> None:
    """Raise a ValueError if there are too many values, as where aliases repeat or contain themselves."""
    waiting, count = [values], 0
    while waiting:
        value, count = waiting.pop(), count + 1
        if count > _MOST:
            raise ValueError(f"more than {_MOST:,} values, or a value that contains itself")
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def stem(kind: str, name: str) -> str:
    """The name of a configuration, also of one that was given by its path."""
    return _path(kind, name).stem


def place(kind: str, name: str, keys: Sequence[str | int]) -> str:
    """The place of a value in a configuration that can be loaded, such as "smoke.yaml, line 3".

    Args:
        kind: "compare", "fit", "schedules" or "train".
        name: name or path of the configuration.
        keys: keys and indices that lead to the value; the innermost place that exists is told.
    """
    path = _path(kind, name)
    node, line = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), None
    for key in keys:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = [(name, value) for name, value in node.value if name.value == str(key)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            pairs = [(value, value) for value in node.value[key : key + 1]]
        if not pairs:
            break
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return path.name if line is None else f"{path.name}, line {line}"


def read(kind: str, name: str, known: Sequence[str], build: Callable[[dict[str, Any]], S]) -> S:
    """What `build` makes of a configuration, by its name or from a YAML file.

    Args:
        kind: "compare", "fit", "schedules" or "train".
        name: name or path of the configuration.
        known: names of the settings.
        build: a function of the settings, by name.

    Raises:
        TokredError: there is no such configuration, or it has a mistake; the message names the line.
    """
    values = load(kind, name)
    check_keys(values, known, lambda key: f"In {place(kind, name, (key,))}: ")
    try:
        return build(values)
    except InvalidSetting as error:
        cause = error.__cause__
        keys = cause.errors()[0]["loc"] if isinstance(cause, ValidationError) else (error.setting,)
        raise TokredError(f"In {place(kind, name, keys)}: {error}") from error
    except TokredError as error:
        raise TokredError(f"In {place(kind, name, ())}: {error}") from error


def check_keys(
    values: Iterable[str], known: Sequence[str], where: Callable[[str], str] = lambda key: ""
) -> None:
    """Raise `UnknownName`, which suggests others after `where` it stands, if a setting is unknown."""
    for name in values:
        if name not in known:
            raise UnknownName(f"{where(name)}{did_you_mean('setting', str(name), known)}")


def validated(schema: TypeAdapter[S], values: Mapping[str, Any]) -> S:
    """Values of a YAML file as a data class.

    Raises:
        InvalidSetting: a value has the wrong type.
    """
    try:
        typed = schema.validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name, *inner = map(str, first["loc"])
        where = "".join(f".{key}" for key in inner if "[" not in key)  # "tuple[int, ...]" is a branch
        message = first["msg"].removeprefix("Input ").replace("tuple", "list")
        raise InvalidSetting(name, f"{{}}{where}: {message}, got {first['input']!r}.") from error
    for name, wrong in _truth_values(values, typed):
        raise InvalidSetting(name, f"{{}} takes numbers, and {wrong} is none.")
    return typed


def _truth_values(values: Mapping[str, Any], typed: Any) -> Iterator[tuple[str, str]]:
    """Settings in which a truth value has become a number, and that value as YAML writes it."""
    for name, value in values.items():
        if (wrong := _as_number(value, getattr(typed, name))) is not None:
            yield name, wrong


def _as_number(value: Any, typed: Any) -> str | None:
    """The first truth value that has become a number, as YAML writes it; None where there is none."""
    if isinstance(value, bool):
        return None if isinstance(typed, bool) else str(value).lower()
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = ((inner, _part(typed, name)) for name, inner in value.items())
    elif isinstance(value, list | tuple) and isinstance(typed, list | tuple):
        pairs = zip(value, typed, strict=False)
    else:
        return None
    return next((wrong for pair in pairs if (wrong := _as_number(*pair)) is not None), None)


def _part(typed: Any, name: str) -> Any:
    return typed[name] if isinstance(typed, Mapping) else getattr(typed, name)


def parse(schema: type[T], values: dict[str, Any], origin: str) -> T:
    """Validate a mapping.

    Raises:
        TokredError: one sentence about the first value that is wrong.
    """
    try:
        typed = schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if not where:  # several values do not fit together
            raise TokredError(f"In {origin}: {message}.") from error
        raise TokredError(
            f"In {origin}, {where} is wrong: {message.lower()} (got {first.get('input')!r})."
        ) from error
    for name, wrong in _truth_values(values, typed):
        raise TokredError(f"In {origin}, {name} is wrong: it takes numbers, and {wrong} is none.")
    return typed


def dump(values: Mapping[str, Any]) -> str:
    """A mapping of plain values as YAML, in its order."""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, allow_unicode=True)


def _path(kind: str, name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / kind / f"{name}.yaml"
    if not path.is_file():
        what = "schedule" if kind == "schedules" else "configuration"
        raise UnknownName(did_you_mean(what, name, names(kind)))
    return path
