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
    """Make a finished run's page again, from the files in its folder. Evaluates nothing."""
    from tokred.report import page as pages
    from tokred.utils.atomic import replace_file

    page = pages.page(pages.of_folder(run))
    file = target or run / "report.html"
    replace_file(file, page.encode(), "choose another file with --out")
    say(f"Report: {file}")
