"""Schedules: the layers at which any method reduces, and how many tokens it keeps there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from tokred import configs
from tokred.errors import InvalidSetting, TokredError
from tokred.utils.numbers import whole
from tokred.utils.text import spaced

Layers = tuple[int, ...] | Literal["all"]
Shape = Literal["uniform", "decreasing"]

KIND = "schedules"


@dataclass(frozen=True)
class Schedule:
    """The layers at which any method reduces, and how many tokens it keeps there.

    Attributes:
        name: what tables call it; by default "explicit" for token counts, and otherwise the shape.
        stages: layers, one-based, or "all"; None for those of the protocol.
        tokens: patch tokens kept after each stage, whatever that saves; None where a budget sets them.
        shape: how a budget is divided among the stages. "uniform" has one value of the method's knob for all
            of them; "decreasing" removes fewer tokens at each stage than at the one before.
        model: the model for which it was made, as --model names it; None for any.

    Raises:
        InvalidSetting: a token count is below 1, or there is not one for each stage.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str = ""
    stages: Layers | None = None
    tokens: tuple[int, ...] | None = None
    shape: Shape = "uniform"
    model: str | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            self._check_tokens(self.tokens)
        if not self.name:
            object.__setattr__(self, "name", self.shape if self.tokens is None else "explicit")

    def _check_tokens(self, tokens: tuple[int, ...]) -> None:
        if not tokens or min(tokens) < 1:
            raise InvalidSetting(
                "tokens",
                '{} is the number of patch tokens kept after each stage, at least 1, such as "150 115 89"; '
                f"got {spaced(tokens) or 'none'}.",
            )
        if isinstance(self.stages, tuple) and len(self.stages) != len(tokens):
            raise InvalidSetting(
                "tokens", f"{{}} needs one number for each of {len(self.stages)} stages, got {len(tokens)}."
            )
        if self.shape != "uniform":
            raise InvalidSetting("shape", "{} has no meaning beside token counts; leave one of them out.")

    @property
    def uniform(self) -> bool:
        """Whether it changes no token counts, only the layers."""
        return self.tokens is None and self.shape == "uniform"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Schedule:
        """Make a schedule from names and values, such as those of a YAML file.

        Raises:
            TokredError: a name is unknown, or a value has the wrong type or is invalid.
        """
        configs.check_keys(values, _NAMES)
        return configs.validated(_SCHEMA, values)


UNIFORM = Schedule()
_SCHEMA = TypeAdapter(Schedule)
_NAMES = [field.name for field in fields(Schedule)]


def load(schedule: str | Mapping[str, Any] | Schedule) -> Schedule:
    """A schedule by its name, from a YAML file, or from a mapping.

    Raises:
        TokredError: there is no such schedule, or it has a mistake; the message names the line of the file.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, Mapping):
        return Schedule.from_mapping(schedule)
    if not isinstance(schedule, str) or not schedule:
        raise TokredError(f"A schedule is a name or the path of a YAML file; got {schedule!r}.")

    def build(values: dict[str, Any]) -> Schedule:
        return Schedule.from_mapping({"name": configs.stem(KIND, schedule), **values})

    return configs.read(KIND, schedule, _NAMES, build)


def choose(
    schedule: str | Mapping[str, Any] | Schedule | None, tokens: Sequence[int] | None = None
) -> Schedule | None:
    """The schedule that the user asks for, by name or by token counts; None for neither.

    Raises:
        TokredError: both are given, or see `load`.
    """
    if tokens is None:
        return None if schedule is None else load(schedule)
    if schedule is not None:
        raise InvalidSetting("tokens", "Give a schedule or {}, not both.")
    try:
        return Schedule(tokens=tuple(whole(count) for count in tokens))
    except TypeError:
        raise TokredError(f"tokens are whole numbers, such as (150, 115, 89); got {tokens!r}.") from None
