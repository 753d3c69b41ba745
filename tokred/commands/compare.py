"""`compare`: methods at one FLOP budget."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from tokred.commands.console import Progress, err, out, say, show, speak, warn
from tokred.commands.groups import ComparisonOptions, configured
from tokred.commands.options import Budget, ConfigName
from tokred.commands.parsing import grouped
from tokred.tables.render import check_format

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Comparison
    from tokred.evaluation.config import Config


@grouped
def compare(
    *, context: typer.Context, config: ConfigName = None, budget: Budget = 0.3, options: ComparisonOptions
) -> None:
    """Evaluate methods at one FLOP budget and write a leaderboard; repeat to resume."""
    from tokred.evaluation.config_file import read_config

    saved = None if config is None else read_config(config)  # first: flags may name methods of its plugins
    flags = options.configuration((budget,))
    run_comparison(flags if saved is None else configured(saved, flags, context), options)


def run_comparison(config: Config, options: ComparisonOptions) -> None:
    """Run a comparison and print its table. If the output is for programs, all else goes to stderr."""
    from tokred.evaluation.comparison import Job
    from tokred.evaluation.running import running_scores
    from tokred.report import outputs

    commentary = out if check_format(options.form) == "table" else err
    job = Job(config, command_line(), outputs.files)
    speak(job.processes.rank == 0)
    say(job.describe(), commentary)
    say(job.open(options.folder or Path("runs") / job.folder_name), commentary)
    measure = "Top-1" if job.source.labelled else "Agreement"
    if job.loaded.model.num_classes < 1:
        measure = "Cosine"
    with resumable(commentary, options.form):
        headers = ("So far", measure, "95 % interval")
        with Progress(len(job.source), "images", 0, lambda: running_scores(job), headers) as advance:
            comparison = job.run(options.workers, advance, options.bench, warn, lambda: advance(0))
    print_comparison(comparison, options.form, commentary)
    say(f"Report, leaderboard, tables and per-image predictions: {comparison.out}", commentary)
    for row in comparison.failed:
        say(f"{row.method}: {row.error}", err)
    if comparison.failed:
        raise typer.Exit(1)


def command_line() -> str:
    """The command as it was typed."""
    return f"tokred {shlex.join(sys.argv[1:])}"


@contextmanager
def resumable(commentary: Console, form: str = "table") -> Iterator[None]:
    """At Ctrl-C print the table so far, and how to continue, and exit with code 130."""
    from tokred.evaluation.comparison import Interrupted

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as interrupted:
        # The process ends now: a second Ctrl-C must lose neither the table nor the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if isinstance(interrupted, Interrupted):
            print_comparison(interrupted.comparison, form, commentary)
        say(f"Interrupted. Resume with: {command_line()}", commentary)
        raise typer.Exit(130) from None


def print_comparison(comparison: Comparison, form: str, commentary: Console) -> None:
    """Print the table of a comparison, and how long that took."""
    from tokred.evaluation.candidates import default_texts
    from tokred.tables import results_table

    rows = comparison.rows
    if rows:
        defaults = default_texts(row.method for row in rows)
        show(results_table.formatted(rows, comparison.title, form, comparison.swept, defaults))
    waiting = f" {comparison.waiting:.0%} of the time was spent waiting for images; more --workers may help."
    say(f"{comparison.seconds:.0f} s.{waiting if comparison.waiting > 0.1 else ''}", commentary)
