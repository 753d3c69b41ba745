"""The command line: all commands, and what an error of the user's looks like."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from tokred import __version__
from tokred.commands import (
    bench,
    check,
    compare,
    configs,
    data,
    export,
    fit,
    leaderboard,
    match,
    methods,
    models,
    new,
    report,
    reproduce,
    show,
    similarity,
    sweep,
    train,
)
from tokred.commands.console import err, say
from tokred.commands.groups import (
    flag,
)
from tokred.errors import InvalidSetting, TokredError

app = typer.Typer(
    help="Compare token-reduction methods for Vision Transformers at one FLOP budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_MAIN = (
    compare.compare,
    sweep.sweep,
    match.match,
    methods.methods,
    check.check,
    fit.fit,
    bench.bench,
    show.show,
)
_MORE = (
    configs.configs,
    models.models,
    data.data,
    export.export,
    new.new,
    report.report,
    train.train,
    reproduce.reproduce,
    similarity.similarity,
)
_NO_MEMORY = (
    "There is not enough memory for this; try fewer images together with --batch-size or --chunk, or a "
    "smaller model or image."
)
for command in _MAIN:
    app.command()(command)
for command in _MORE:
    app.command(rich_help_panel="More")(command)
app.add_typer(leaderboard.app, name="leaderboard", rich_help_panel="More")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of tokred itself."""
    if version:
        say(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: errors that are the user's to solve are one sentence and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries warn each other
    try:
        app(standalone_mode=True)
    except (TokredError, OSError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        err.quiet = False
        say(sentence, err, "Error:", "red")
        raise SystemExit(2) from None


def _sentence(error: BaseException) -> str | None:
    """What an error of the user's says; None for one that is not.

    What the operating system refuses, such as a file without permission, is named, and so is lack of memory,
    which torch reports as a plain RuntimeError.
    """
    if isinstance(error, InvalidSetting):
        return error.named(flag(error.setting))
    if isinstance(error, TokredError):
        return str(error)
    if not isinstance(error, OSError):
        from tokred.utils.devices import is_out_of_memory

        return _NO_MEMORY if is_out_of_memory(error) else None
    reason = error.strerror or str(error)
    return f"{reason}." if error.filename is None else f"{error.filename} cannot be used: {reason}."
