"""`leaderboard`: many runs in one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokred.commands.console import Progress, err, say, show
from tokred.commands.groups import load
from tokred.commands.options import Adapters, Data, Device, Plugins, Weights
from tokred.commands.parsing import parse_names

if TYPE_CHECKING:
    from tokred.leaderboard import Change

app = typer.Typer(help="Merge, rank, verify and export the leaderboards of many runs.", no_args_is_help=True)

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or their CSV files.")]
Board = Annotated[Path, typer.Option("--board", help="CSV of the board; created if it does not exist.")]
Target = Annotated[
    Path, typer.Argument(metavar="RUN_OR_BOARD", help="Folder of a run, or the CSV of a board.")
]
Title = Annotated[str, typer.Option(help="Heading of the page.")]


@app.command("add")
def leaderboard_add(runs: Runs, board: Board = Path("leaderboard.csv")) -> None:
    """Merge runs into one CSV, where newer rows replace older ones. Safe for concurrent processes."""
    from tokred import leaderboard

    _say_change(board, leaderboard.add(board, *runs))


@app.command("build")
def leaderboard_build(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to add first.")] = None,
    board: Board = Path("leaderboard.csv"),
    page: Annotated[
        Path | None, typer.Option(help="HTML file to write; by default next to the board.")
    ] = None,
    title: Title = "Leaderboard of token reduction",
) -> None:
    """Merge runs into one CSV, rank comparable rows, and write an HTML and a Markdown page."""
    from tokred import leaderboard
    from tokred.leaderboard import publish

    if runs:
        _say_change(board, leaderboard.add(board, *runs))
    say(publish.build(board, page, title))


@app.command("export")
def leaderboard_export(
    board: Target = Path("leaderboard.csv"),
    format_: Annotated[
        str, typer.Option("--format", help="timm, timm-benchmark, csv, markdown or latex.")
    ] = "csv",
    file: Annotated[Path | None, typer.Option("--out", help="File to write; by default, print.")] = None,
    title: Title = "Leaderboard of token reduction",
) -> None:
    """Export a board or a run as CSV with ranks, timm's columns, Markdown or LaTeX."""
    from tokred.leaderboard import publish

    text = publish.export(board, format_, title, file)
    if file is None:
        sys.stdout.write(text)
    else:
        say(str(file))


@app.command("verify")
def leaderboard_verify(
    target: Target,
    method: Annotated[str | None, typer.Option(help="Comma-separated methods; by default all.")] = None,
    sample: Annotated[
        int,
        typer.Option(min=1, help="Number of images per run to evaluate again, rounded up to whole batches."),
    ] = 64,
    seed: Annotated[int, typer.Option(help="Random seed for choosing batches.")] = 0,
    data: Data = None,
    weights: Weights = None,
    adapters: Adapters = None,
    plugins: Plugins = None,
    device: Device = "auto",
) -> None:
    """Recompute the rows of a run or board and evaluate a sample again; exit with 1 if any differ."""
    from tokred.leaderboard import verify
    from tokred.leaderboard.verify.rerun import Places

    load(plugins)
    places = Places(data, None if weights is None else str(weights), tuple(adapters or ()), device)
    verification = verify.verify(
        target, parse_names(method), sample, seed, places, lambda total: Progress(total, "images")
    )
    for line in verification.remarks:
        say(line)
    show(verify.table(verification).render())
    if not verification.confirmed:
        raise typer.Exit(1)


def _say_change(board: Path, change: Change) -> None:
    skipped = f", {change.kept} skipped in favour of better or newer rows" if change.kept else ""
    say(f"{board}: {change.added} added, {change.replaced} replaced{skipped}; {change.total} rows.")
    for remark in change.remarks:
        say(remark, err)
