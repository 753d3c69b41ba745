"""`report`: the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokred.commands.console import say


def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    target: Annotated[
        Path | None,
        typer.Option("--out", dir_okay=False, help="HTML file; by default report.html in the run's folder."),
    ] = None,
) -> None:
    """Write the report of a finished run again, without evaluating anything."""
    from tokred.evaluation.run_folder import read_run
    from tokred.report.page import page
    from tokred.utils.atomic import replace_file

    file = target or run / "report.html"
    html = page(read_run(run, with_maps=True))
    replace_file(file, html.encode(), "choose another file with --out")
    say(f"Report: {file}")
