"""The files that a finished run leaves in its folder."""

from __future__ import annotations

from tokred import plots
from tokred.errors import TokredError
from tokred.evaluation.candidates import default_texts
from tokred.evaluation.comparison import Comparison, Job
from tokred.plots import pareto
from tokred.report import page
from tokred.tables import render
from tokred.tables.results_table import results_table
from tokred.tables.row import to_csv
from tokred.visualize import trace

_MAPPED = 4  # images of which the report shows where their tokens went


def files(job: Job, comparison: Comparison) -> dict[str, str | bytes]:
    """The files of a finished run, but for run.json."""
    rows, leaderboard = comparison.rows, to_csv(comparison.rows)
    table = results_table(rows, comparison.title, default_texts(row.method for row in rows))
    predictions = job.predictions().pack()
    run = {
        **(job.folder.run if job.folder else {"configuration": job.configuration}),
        **job.about(comparison),
        "finished": True,
    }
    figure = pareto.pareto(rows, "gflops", job.title)
    drawn = _maps(job)
    return {
        **({} if drawn is None else {"maps.npz": drawn}),
        "predictions.npz": predictions,
        "table.md": render.markdown(table),
        "table.tex": render.latex(table),
        "pareto.svg": plots.svg(figure),
        "pareto.png": plots.png(figure),
        "report.html": page.page(
            page.of_files(leaderboard, run, predictions, drawn)
        ),  # as `tokred report` makes it from the files
        "leaderboard.csv": leaderboard,
    }


def _maps(job: Job) -> bytes | None:
    """Where the tokens of those images went on which methods disagree most; of several budgets, at the middle one."""
    budgets = sorted(
        {candidate.budget for candidate in job.candidates if candidate.match and candidate.budget is not None}
    )
    middle = budgets[len(budgets) // 2] if budgets else None
    chosen = [
        candidate
        for candidate in job.candidates
        if candidate.match and candidate.budget == middle and candidate.name not in job.evaluation.failed
    ]
    models = {candidate.name: candidate.model for candidate in chosen if candidate.model is not None}
    index = trace.choose(job.evaluation, _MAPPED)
    if not models or not len(index):
        return None
    try:
        images = trace.load(job.source, job.preparation, index.tolist())
        return trace.pack(trace.trace(job.loaded.model, models, images, device=job.device, dtype=job.dtype))
    except (TokredError, RuntimeError, MemoryError):  # pictures are no reason to lose a run's results
        return None
