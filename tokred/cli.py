"""The command line: all commands, and what an error of the user's looks like."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich.markup import escape

from tokred import __version__
from tokred.commands import compare, data, fit, leaderboard, match, report, reproduce, show, similarity
from tokred.commands.console import err, out
from tokred.commands.options import flag
from tokred.errors import InvalidSetting, TokredError
from tokred.utils.text import visible

app = typer.Typer(
    help="Compare token-reduction methods for Vision Transformers at one FLOP budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(compare.compare, compare.sweep),
    *(match.match, match.bench, match.methods),
    reproduce.reproduce,
    *(fit.train, fit.fit),
    *(similarity.similarity, show.show, report.report),
    match.check,
    data.data,
):
    app.command()(command)
app.add_typer(leaderboard.app, name="leaderboard")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of tokred itself."""
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit


def main() -> None:
    """Entry point: errors that are the user's to solve are one sentence and exit code 2."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning
    )  # libraries warn each other; users need not read it
    try:
        app(standalone_mode=True)
    except TokredError as error:
        err.quiet = False
        text = error.named(flag(error.setting)) if isinstance(error, InvalidSetting) else str(error)
        err.print(f"[red]Error:[/red] {escape(visible(text))}", soft_wrap=True)
        raise SystemExit(2) from None
