"""Errors that the user can solve, each with one sentence: what was given, what is expected, what to try."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_COMMAND = r"`[^`]*`|tokred [a-z]+(?: --[\w-]+(?: [^-\s]\S*)?)*"  # keeps its flags
_FLAG = r"--(?P<no>no-)?(?P<name>[a-z][a-z-]*)"
UNLABELLED = -2  # label of an image whose label is unknown or could not be read


class TokredError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2."""


class UnknownName(TokredError):
    """A method, model, protocol or configuration that does not exist."""


class UnsupportedModel(TokredError):
    """A model whose blocks or pooling tokred does not know."""


class Unreachable(TokredError):
    """A budget that a method cannot meet at its stages."""


class UncountedOp(TokredError):
    """An operator without a FLOP count: better no number than one that is too small."""


class UnreadableImage(TokredError):
    """An image file that cannot be decoded.

    Attributes:
        label: the image's label where the reader knows it, else `UNLABELLED`.
    """

    def __init__(self, message: str, label: int = UNLABELLED) -> None:
        super().__init__(message)
        self.label = label

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.label)


class InvalidSetting(TokredError):
    """A value of a configuration that cannot be used.

    Args:
        setting: name of the argument and key of configuration files; the command line prints a flag instead.
        sentence: what is wrong; "{}" stands for the setting's name.
    """

    def __init__(self, setting: str, sentence: str) -> None:
        super().__init__(setting, sentence)
        self.setting, self.sentence = setting, sentence

    def __str__(self) -> str:
        return self.named(self.setting)

    def named(self, name: str) -> str:
        """The sentence with another name for the setting, such as a flag of the command line."""
        return self.sentence.replace("{}", name)


class Unfitted(TokredError):
    """A learned method without an adapter: random parameters are no result."""


def did_you_mean(kind: str, name: str, known: Sequence[str]) -> str:
    """One sentence about an unknown name, with the nearest known names.

    >>> did_you_mean("method", "tomee", ["lotm", "tome"])
    "Unknown method 'tomee'. Did you mean: tome?"
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean: {', '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return f"Unknown {kind} {name!r}. {hint}"


def with_arguments(sentence: str) -> str:
    """A sentence for Python users: the names of arguments in place of flags, except in whole commands.

    >>> with_arguments("choose others with --img-size, or use --no-labels; see `tokred data --split all`")
    'choose others with img_size, or use labels=False; see `tokred data --split all`'
    """

    def argument(match: re.Match[str]) -> str:
        if match["name"] is None:
            return match[0]
        name = match["name"].replace("-", "_")
        return f"{name}=False" if match["no"] else name

    return re.sub(f"{_COMMAND}|{_FLAG}", argument, sentence)


def names_arguments(function: _Function) -> _Function:
    """Decorate a function of the Python interface, so that its errors name arguments instead of flags."""

    @functools.wraps(function)
    def named(*args: Any, **settings: Any) -> Any:
        try:
            return function(*args, **settings)
        except TokredError as error:
            error.args = tuple(with_arguments(a) if isinstance(a, str) else a for a in error.args)
            raise

    return named  # type: ignore[return-value]
