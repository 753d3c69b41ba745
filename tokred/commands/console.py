"""What the commands have in common: where they print, the progress bar, and options that are lists in one string."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from tokred.errors import TokredError

out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)


def speak(first: bool) -> None:
    """Of several processes only the first one speaks."""
    out.quiet = err.quiet = not first


def show(drawn: Any) -> None:
    """Print a result: text as it is, for other programs, and tables as wide as the terminal."""
    if not isinstance(drawn, str):
        out.print(drawn)
    elif not out.quiet:
        sys.stdout.write(drawn)


class Progress:
    """A progress bar that knows the remaining time; `with` gives a function that advances it."""

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, TextColumn("{task.description}"), console=err)
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Callable[..., None]:
        self.bar.start()
        return lambda count, description="": self.bar.update(
            self.task, advance=count, description=description
        )

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def parse_names(text: str | None) -> tuple[str, ...]:
    """Names with commas between, such as "lotm,tome"; none for None."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_layers(text: str | None, option: str = "--stages") -> tuple[int, ...] | None:
    """Layers from "4 7 10" or "4,7,10", as an option has them.

    Raises:
        TokredError: these are no whole numbers.
    """
    if text is None:
        return None
    try:
        return tuple(int(layer) for layer in text.replace(",", " ").split())
    except ValueError:
        raise TokredError(f'{option} takes layer numbers, such as "4 7 10"; got {text!r}.') from None


def parse_settings(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """Options by method from settings such as "lotm.order=append".

    Raises:
        TokredError: one of another form.
    """
    options: dict[str, dict[str, Any]] = {}
    for setting in settings or []:
        target, equals, value = setting.partition("=")
        method, dot, name = target.partition(".")
        if not (equals and dot and method and name):
            raise TokredError(f"--set takes METHOD.OPTION=VALUE, such as lotm.order=append; got {setting!r}.")
        options.setdefault(method, {})[name] = value
    return options


def parse_batch_sizes(text: str | None) -> tuple[int, ...]:
    """Batch sizes from "1,16,128"; none for None.

    Raises:
        TokredError: these are no whole numbers.
    """
    try:
        return tuple(int(size) for size in (text or "").replace(",", " ").split())
    except ValueError:
        raise TokredError(f"--batch-size takes numbers of images, such as 1,16,128; got {text!r}.") from None
