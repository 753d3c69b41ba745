"""Variants of methods: a method with other default options, named "lotm[curve=snake,weighted=True]"."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from tokred.core.options import default_options, options_text, typed_options
from tokred.errors import TokredError

if TYPE_CHECKING:
    from tokred.core.reducer import Reducer

_made: dict[tuple[type[Reducer], str], type[Reducer]] = {}


def variant(cls: type[Reducer], name: str) -> type[Reducer]:
    """The class of a method whose defaults are the options in brackets of a name.

    >>> from tokred.core import registry
    >>> made = variant(registry.get("lotm"), "lotm[weighted=1]")
    >>> made.name, default_options(made)["weighted"]
    ('lotm[weighted=True]', True)

    Args:
        cls: the method's class.
        name: the name of the method, then "option=value" in brackets, with commas between.

    Raises:
        TokredError: the name has another form, or the method has no such options or values.
    """
    options = typed_options(cls, _parsed(name))
    name = f"{cls.name}[{options_text(options).replace(' ', ',')}]"
    if (cls, name) not in _made:
        _made[cls, name] = _made_class(cls, name, options)
    return _made[cls, name]


def _parsed(name: str) -> dict[str, str]:
    """The options in brackets, as text."""
    inner = name.partition("[")[2]
    pairs = [part.partition("=") for part in inner.removesuffix("]").split(",")]
    if not inner.endswith("]") or not all(key.strip() and equals for key, equals, _ in pairs):
        raise TokredError(
            "A variant of a method is named METHOD[OPTION=VALUE,...], such as lotm[curve=snake]; "
            f"got {name!r}."
        )
    return {key.strip(): value.strip() for key, _, value in pairs}


def _made_class(cls: type[Reducer], name: str, options: dict[str, Any]) -> type[Reducer]:
    start = cls.__init__
    defaults = {**default_options(cls), **options}
    signature = inspect.signature(start)

    @functools.wraps(start)
    def init(self: Reducer, *sizes: int, **chosen: Any) -> None:
        start(self, *sizes, **{**options, **chosen})

    init.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            parameter.replace(default=defaults.get(parameter.name, parameter.default))
            for parameter in signature.parameters.values()
        ]
    )
    facts = {"__init__": init, "__doc__": cls.__doc__, "__module__": cls.__module__, "name": name}
    return type(cls.__name__, (cls,), facts)
