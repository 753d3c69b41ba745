"""The files that a finished run leaves in its folder."""

from __future__ import annotations

import numpy as np

from tokred import plots
from tokred.errors import TokredError
from tokred.evaluation.comparison import Comparison, Job
from tokred.evaluation.rows import about
from tokred.plots import pareto
from tokred.report import page
from tokred.tables import results_table
from tokred.tables.row import csv_text
from tokred.visualize import trace

_MAPPED = 4  # images of which the report shows where their tokens went


def files(job: Job, comparison: Comparison) -> dict[str, str | bytes]:
    """The files of a finished run, but for run.json."""
    rows, leaderboard = comparison.rows, csv_text(comparison.rows)
    predictions = job.evaluation.pack(
        np.arange(len(job.source)), comparison.seconds, groups=job.source.groups
    )
    run = {
        **(job.folder.run if job.folder else {"configuration": job.configuration}),
        **about(job, comparison),
        "finished": True,
    }
    figure = pareto.pareto(rows, "gflops", job.title)
    drawn = _maps(job)
    return {
        **({} if drawn is None else {"maps.npz": drawn}),
        "predictions.npz": predictions,
        "table.md": results_table.markdown(rows),
        "table.tex": results_table.latex(rows),
        "pareto.svg": plots.svg(figure),
        "pareto.png": plots.png(figure),
        "report.html": page.page(
            page.of_files(leaderboard, run, predictions, drawn)
        ),  # as `tokred report` makes it from the files
        "leaderboard.csv": leaderboard,
    }


def _maps(job: Job) -> bytes | None:
    """Where the tokens of those images went on which methods disagree most; of several budgets, at the middle one."""
    budgets = sorted({entry.budget for entry in job.entries if entry.match and entry.budget is not None})
    middle = budgets[len(budgets) // 2] if budgets else None
    chosen = [
        entry
        for entry in job.entries
        if entry.match and entry.budget == middle and entry.name not in job.evaluation.failed
    ]
    models = {entry.name: entry.model for entry in chosen if entry.model is not None}
    index = trace.choose(job.evaluation, _MAPPED)
    if not models or not len(index):
        return None
    try:
        images = trace.load(job.source, job.preparation, index.tolist())
        return trace.pack(trace.trace(job.loaded.model, models, images, device=job.device, dtype=job.dtype))
    except (TokredError, RuntimeError, MemoryError):  # pictures are no reason to lose a run's results
        return None
