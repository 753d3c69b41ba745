"""Options of methods: validated and typed once, with the defaults filled in; from then on they are values.

A method's options are the keyword-only arguments of its class. Each is a bool, an int, a float, a str or a
`Literal`, or one of these or None.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from tokred.errors import TokredError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from tokred.core.reducer import Reducer

_WORDS = {"true": True, "1": True, "false": False, "0": False}


def default_options(cls: type[Reducer]) -> dict[str, Any]:
    """The options of a method with their defaults, in the order of its signature.

    >>> from tokred.core import registry
    >>> default_options(registry.get("topk"))
    {'order': 'score'}
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def complete_options(cls: type[Reducer], options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: given values, converted to their annotated types, and defaults for the rest.

    Equal options are equal values, however they were written; completing them again changes nothing.

    >>> from tokred.core import registry
    >>> complete_options(registry.get("evit"), {"normalize": "1"})
    {'normalize': True}

    Args:
        cls: the method's class.
        options: values, or their text as the command line has it.

    Raises:
        UnknownName: the method has no such option.
        TokredError: the annotation does not allow the value.
    """
    if not isinstance(options, Mapping):
        raise TokredError(f"Options of {cls.name} are given by their names; got {options!r}.")
    complete = default_options(cls)
    hints = get_type_hints(cls.__init__) if options else {}
    for name, value in options.items():
        if name not in complete:
            raise UnknownName(
                did_you_mean(f"option of {cls.name}", name, sorted(complete))
                if complete
                else f"{cls.name} has no options, got {name!r}."
            )
        if type(value) is not type(complete[name]) or value != complete[name]:
            complete[name] = _convert(f"{cls.name}.{name}", value, hints.get(name, str))
    return complete


def typed_options(cls: type[Reducer], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, as values, in the order of the signature.

    A configuration holds these, because what is asked for may contradict a checkpoint where a default would
    not; what decides the numbers of a run are the complete options.

    >>> from tokred.core import registry
    >>> typed_options(registry.get("tome"), {"proportional": "1"})
    {'proportional': True}

    Raises:
        TokredError: as `complete_options`.
    """
    return {name: value for name, value in complete_options(cls, options).items() if name in options}


def changed_options(cls: type[Reducer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a method's complete options that are not the default, sorted by name.

    >>> from tokred.core import registry
    >>> changed_options(registry.get("tome"), {"metric": "x", "proportional": True})
    {'metric': 'x'}
    """
    defaults = default_options(cls)
    return {name: value for name, value in sorted(options.items()) if value != defaults[name]}


def options_text(options: Mapping[str, Any]) -> str:
    """Options as tables and file names show them.

    >>> options_text({"metric": "x", "proportional": True})
    'metric=x proportional=True'
    """
    return " ".join(f"{name}={value}" for name, value in options.items())


def options_arguments(cls: type[Reducer], options: Mapping[str, Any]) -> list[str]:
    """The words of a command that set a method's options, for those that are not the default.

    >>> from tokred.core import registry
    >>> options_arguments(registry.get("tome"), {"metric": "x", "proportional": True})
    ['--set', 'tome.metric=x']
    """
    changed = changed_options(cls, options)
    return [word for name, value in changed.items() for word in ("--set", f"{cls.name}.{name}={value}")]


def _convert(name: str, value: Any, hint: Any) -> Any:
    """A value as its annotation has it; a `TokredError` if the annotation does not allow it."""
    if get_origin(hint) in (Union, UnionType):
        if str(value) == "None" and NoneType in get_args(hint):
            return None
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        if str(value) not in choices:
            raise TokredError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
        return choices[str(value)]
    if hint is bool:
        if str(value).lower() not in _WORDS:
            raise TokredError(f"{name} must be true or false, got {value!r}.")
        return _WORDS[str(value).lower()]
    try:
        typed = hint(value)
        # int(2.7) is 2, and int(True) is 1
        if (isinstance(value, float) and typed != value) or (isinstance(value, bool) and hint is not str):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise TokredError(
            f"{name} must be of type {getattr(hint, '__name__', hint)}, got {value!r}."
        ) from None
    return typed
