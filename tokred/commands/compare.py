"""`compare` and `sweep`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokred.commands.console import Progress, err, out, show, speak
from tokred.commands.options import (
    Budget,
    Format,
    ImageOptions,
    Model,
    PlanOptions,
    Results,
    RowOptions,
    RunOptions,
    Workers,
    configuration,
    grouped,
)
from tokred.tables.render import check_format
from tokred.utils.text import plain_name, visible

Rounds = Annotated[
    int, typer.Option(min=0, help="Rounds in which each model is timed alone afterwards; 0 for none.")
]


@grouped
def compare(
    *,
    budget: Budget = 0.3,
    model: Model = "deit_s",
    plans: PlanOptions,
    images: ImageOptions,
    rows: RowOptions,
    how: RunOptions,
    folder: Results = None,
    workers: Workers = None,
    bench: Rounds = 0,
    form: Format = "table",
) -> None:
    """Evaluate all methods at one FLOP budget and write their leaderboard. A killed run goes on with the same command."""
    run_comparison(configuration(model, (budget,), plans, images, rows, how), folder, workers, bench, form)


@grouped
def sweep(
    *,
    budgets: Annotated[
        str, typer.Option(help="FIRST:LAST:STEP, or budgets with commas between.")
    ] = "0.1:0.6:0.1",
    model: Model = "deit_s",
    plans: PlanOptions,
    images: ImageOptions,
    rows: RowOptions,
    how: RunOptions,
    folder: Results = None,
    workers: Workers = None,
    bench: Rounds = 0,
    form: Format = "table",
) -> None:
    """Evaluate all methods at several FLOP budgets in one pass: accuracy against FLOPs."""
    from tokred.evaluation.config import budget_range

    run_comparison(
        configuration(model, budget_range(budgets), plans, images, rows, how), folder, workers, bench, form
    )


def run_comparison(
    config: Any, folder: Path | None, workers: int | None, bench: int = 0, form: str = "table"
) -> None:
    """Run a comparison, and print what came of it. But for tables on a terminal, the output is data and everything else goes to errors."""
    from tokred.evaluation.comparison import Interrupted, Job
    from tokred.report import outputs

    say = out if check_format(form) == "table" else err
    command = f"tokred {shlex.join(sys.argv[1:])}"
    job = Job(config, command, outputs.files)
    speak(job.processes.rank == 0)
    say.print(escape(visible(job.describe())), soft_wrap=True)
    budgets = "-".join(f"{budget:g}" for budget in dict.fromkeys((config.budgets[0], config.budgets[-1])))
    target = (
        folder
        or Path("runs") / f"{plain_name(config.model)}-{plain_name(job.source.name)}-{budgets}-{job.key}"
    )
    notice = job.open(target)
    if notice:
        say.print(escape(visible(notice)), soft_wrap=True)
    try:
        with Progress(len(job.source), "images") as advance:
            comparison = job.run(workers, advance, bench, _warn)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        if isinstance(interrupted, Interrupted):
            _print_comparison(interrupted.comparison, form, say)
        say.print(escape(f"Interrupted. This goes on: {command}"), soft_wrap=True)
        raise typer.Exit(130) from None
    _print_comparison(comparison, form, say)
    say.print(
        escape(f"Report, leaderboard, tables and per-image predictions: {comparison.out}"), soft_wrap=True
    )
    for row in comparison.failed:
        err.print(escape(visible(f"{row.method}: {row.error}")), soft_wrap=True)
    if comparison.failed:
        raise typer.Exit(1)


def _warn(sentence: str) -> None:
    err.print(f"[yellow]Warning:[/yellow] {escape(visible(sentence))}", soft_wrap=True)


def _print_comparison(comparison: Any, form: str, say: Any) -> None:
    from tokred.evaluation.candidates import default_texts
    from tokred.tables import results_table

    rows = comparison.rows
    if rows:
        defaults = default_texts(row.method for row in rows)
        show(results_table.formatted(rows, comparison.title, form, comparison.swept, defaults))
    waiting = (
        f" {comparison.waiting:.0%} of the time was waiting for images; more --workers may help."
        if comparison.waiting > 0.1
        else ""
    )
    say.print(escape(f"{comparison.seconds:.0f} s.{waiting}"), soft_wrap=True)
