"""Printing for commands: sentences, results, and the progress of long jobs."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tokred.tables.render import Table
from tokred.utils.text import visible

if TYPE_CHECKING:
    from rich.live import Live

_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
out = Console(width=_WIDTH, emoji=False, highlight=False)
err = Console(stderr=True, emoji=False, highlight=False)

_LINES, _FIGURES = 30.0, 2.0  # seconds between lines in a pipe, and between figures in a terminal
_FIRST = 5.0  # seconds after which a line has the first figures, even if no unit is done

Figures = Callable[[], Sequence[tuple[str, str, str]]]


def speak(first: bool) -> None:
    """Let only the first of several processes print."""
    out.quiet = err.quiet = not first


def say(sentence: str, console: Console | None = None, label: str = "", style: str = "") -> None:
    """Print a sentence, which may contain foreign text, on a line of its own.

    Args:
        sentence: the sentence; nothing is printed for an empty one.
        console: the console; by default `out`.
        label: a word before the sentence, such as "Warning:".
        style: rich style of the label.
    """
    if sentence:
        text = Text(visible(sentence)) if not label else Text.assemble((label, style), " ", visible(sentence))
        (console or out).print(text, soft_wrap=True)


def warn(sentence: str) -> None:
    """Print a warning to stderr."""
    say(sentence, err, "Warning:", "yellow")


def show(result: str | RenderableType) -> None:
    """Print a result: text unchanged, and tables as wide as the terminal."""
    if not isinstance(result, str):
        out.print(result)
    elif not out.quiet:
        sys.stdout.write(result)


def show_records(table: Table, records: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print a table or, as CSV and JSON, its records with raw numbers."""
    if form == "json":
        show(json.dumps(list(records), indent=2, ensure_ascii=False) + "\n")
    elif form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([tuple(records[0]), *(tuple(record.values()) for record in records)])
        show(text.getvalue())
    else:
        show(table.render(form))


class Progress:
    """The progress of a job: a bar in a terminal, and elsewhere a line every 30 seconds.

    `with` returns the function `advance`.

    Args:
        total: total number of units.
        unit: name of the units, such as "images".
        done: number of units done before.
        figures: function called every few seconds for intermediate results, (name, value, interval) each,
            which are shown in a table below the bar.
        headers: headers of that table.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        done: int = 0,
        figures: Figures | None = None,
        headers: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        self.total, self.unit, self.done, self.figures, self.headers = total, unit, done, figures, headers
        self.start = self.printed = time.monotonic()
        self.before, self.state = done, ""
        self.rows: Sequence[tuple[str, str, str]] = ()
        self.live: Live | None = None
        if err.is_terminal:
            from rich.live import Live

            self.bar = _bar(total, unit, done)
            self.live = Live(console=err, get_renderable=self._renderable, transient=figures is not None)

    def __enter__(self) -> Callable[..., None]:
        if self.live:
            self.live.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        elif self.done > self.before:
            self.rows = self.figures() if self.figures else ()
            self._print_line()

    def advance(self, count: int, state: str = "") -> None:
        """Advance by a number of units, with a word about the state of the job.

        With 0, only the figures are brought up to date.
        """
        before = self.done
        self.done, self.state = min(self.total, before + count), state
        now = time.monotonic()
        due = before == self.before < self.done or now - self.printed > self._pause()
        if due and self.figures:
            self.rows = self.figures()
        if self.live:
            self.bar.update(self.bar.task_ids[0], completed=self.done, description=state)
        elif due and self.done < self.total and (self.rows or self.done > self.before):
            self._print_line()
        if due:
            self.printed = now

    def _pause(self) -> float:
        """Seconds between two updates."""
        if self.live:
            return _FIGURES
        return _FIRST if self.figures and not self.rows else _LINES

    def _renderable(self) -> RenderableType:
        if not self.rows:
            return self.bar
        table = Table(headers=self.headers, rows=self.rows)
        return Group(self.bar, table.render())  # type: ignore[arg-type]

    def _print_line(self) -> None:
        elapsed = time.monotonic() - self.start
        times = f"{_clock(elapsed)} elapsed"
        if self.before < self.done < self.total:
            rest = elapsed * (self.total - self.done) / (self.done - self.before)
            times += f", {_clock(rest)} remaining"
        figures = ", ".join(f"{name} {value}" for name, value, _ in self.rows)
        about = [self.state] if self.state else []
        about += [f"{self.headers[1]} so far: {figures}"] if figures else []
        say("; ".join([f"{self.done} of {self.total} {self.unit}, {times}", *about]), err)


def _bar(total: int, unit: str, done: int) -> Any:
    from rich import progress

    bar = progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        progress.TimeElapsedColumn(),
        progress.TextColumn("remaining"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
        console=err,
    )
    bar.add_task("", total=total, completed=done)
    return bar


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
