"""`leaderboard`: many runs in one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokred.commands.console import Progress, err, say, show
from tokred.commands.options import Adapters, Data, Device, Plugins, Weights, load, parse_names

if TYPE_CHECKING:
    from tokred.leaderboard import Change

app = typer.Typer(help="One leaderboard of many runs.", no_args_is_help=True)

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or CSV files of their form.")
]
Board = Annotated[Path, typer.Option("--board", help="The CSV to merge them into; made where there is none.")]
Target = Annotated[
    Path, typer.Argument(metavar="RUN_OR_BOARD", help="Folder of a run, or the CSV of a board.")
]
Title = Annotated[str, typer.Option(help="Heading of the page.")]


@app.command("add")
def leaderboard_add(runs: Runs, board: Board = Path("leaderboard.csv")) -> None:
    """Merge runs into one CSV, also from many processes at once; newer measurements replace older rows."""
    from tokred import leaderboard

    _say_change(board, leaderboard.add(board, *runs))


@app.command("build")
def leaderboard_build(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Runs to add first; none for a page of the board."),
    ] = None,
    board: Board = Path("leaderboard.csv"),
    page: Annotated[
        Path | None, typer.Option(help="The HTML page; by default beside the board, under its name.")
    ] = None,
    title: Title = "Leaderboard of token reduction",
) -> None:
    """Merge runs into one CSV, rank what compares, and write an HTML page and a Markdown page of it."""
    from tokred import leaderboard
    from tokred.leaderboard import publish

    if runs:
        _say_change(board, leaderboard.add(board, *runs))
    written = publish.build(board, page, title)
    say(f"{written.counted} Pages: {written.html}, {written.markdown}")


@app.command("export")
def leaderboard_export(
    board: Target = Path("leaderboard.csv"),
    format_: Annotated[
        str, typer.Option("--format", help="timm, timm-benchmark, csv, markdown or latex.")
    ] = "csv",
    file: Annotated[
        Path | None, typer.Option("--out", help="File to write; by default it is printed.")
    ] = None,
    title: Title = "Leaderboard of token reduction",
) -> None:
    """Write a board, or a run, in another form: timm's columns, ranks in a CSV, Markdown, LaTeX."""
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
        int, typer.Option(min=1, help="Images of each run to run again, in whole batches of the run.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Seed by which batches are chosen.")] = 0,
    data: Data = None,
    weights: Weights = None,
    adapters: Adapters = None,
    plugins: Plugins = None,
    device: Device = "auto",
) -> None:
    """Run some images of a run or of a board again, and compare; exit with 1 if a row is not confirmed."""
    from tokred.leaderboard import verify
    from tokred.leaderboard.verify.rerun import Places

    load(plugins)
    places = Places(data, None if weights is None else str(weights), tuple(adapters or ()), device)
    found = verify.verify(
        target, parse_names(method), sample, seed, places, lambda total: Progress(total, "images")
    )
    for line in found.remarks:
        say(line)
    show(verify.table(found).render())
    if not found.confirmed:
        raise typer.Exit(1)


def _say_change(board: Path, change: Change) -> None:
    kept = f", {change.kept} left out for a better or newer one" if change.kept else ""
    say(f"{board}: {change.added} added, {change.replaced} replaced{kept}; {change.total} rows.")
    for remark in change.remarks:
        say(remark, err)
