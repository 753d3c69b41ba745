"""The files of a finished run."""

from __future__ import annotations

from tokred import plots
from tokred.errors import TokredError
from tokred.evaluation.candidates import default_texts
from tokred.evaluation.comparison import Comparison, Job
from tokred.evaluation.run_folder import Run
from tokred.plots import pareto
from tokred.report import page
from tokred.tables import render
from tokred.tables.results_table import results_table
from tokred.tables.row import to_csv
from tokred.visualize import trace

_MAPPED = 4  # images with merge maps in the report


def files(job: Job, comparison: Comparison) -> dict[str, str | bytes]:
    """The files of a finished run except run.json."""
    rows, predictions, traced = comparison.rows, job.predictions(), _traced(job)
    start = job.folder.run if job.folder else {"configuration": job.configuration}
    run = {**start, **job.about(comparison), "finished": True}
    table = results_table(rows, comparison.title, default_texts(row.method for row in rows))
    figure = pareto.pareto(rows, "gflops", job.title)
    maps = {} if traced is None else trace.arrays(traced)
    return {
        **({} if traced is None else {"maps.npz": trace.pack(traced)}),
        "predictions.npz": predictions.pack(),
        "table.md": render.markdown(table),
        "table.tex": render.latex(table),
        "pareto.svg": plots.svg(figure),
        "pareto.png": plots.png(figure),
        "report.html": page.page(Run(rows, run, predictions, maps)),
        "leaderboard.csv": to_csv(rows),
    }


def _traced(job: Job) -> trace.Traced | None:
    """The tokens on the images with most disagreement, at the middle one of several budgets."""
    planned = [candidate for candidate in job.candidates if candidate.match]
    budgets = sorted({candidate.budget for candidate in planned if candidate.budget is not None})
    middle, failed = budgets[len(budgets) // 2] if budgets else None, job.evaluation.failed
    models = {
        candidate.name: candidate.model
        for candidate in planned
        if candidate.budget == middle and candidate.name not in failed and candidate.model is not None
    }
    index = trace.choose(job.evaluation, _MAPPED)
    if not models or not len(index):
        return None
    try:
        images = trace.load(job.source, job.preparation, index.tolist())
        return trace.trace(job.loaded.model, models, images, device=job.device, dtype=job.dtype)
    except (TokredError, RuntimeError, MemoryError):  # without pictures the results are still valid
        return None
