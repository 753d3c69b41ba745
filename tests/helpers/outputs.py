"""What a run leaves, without what takes seconds to draw."""

from tokred.evaluation.candidates import default_texts
from tokred.tables import render
from tokred.tables.results_table import results_table
from tokred.tables.row import to_csv


def plain(job, comparison):
    """The files of a run, with a line in place of the page and the figures."""
    rows = comparison.rows
    table = results_table(rows, comparison.title, default_texts(row.method for row in rows))
    return {
        "predictions.npz": job.predictions().pack(),
        "table.md": render.markdown(table),
        "table.tex": render.latex(table),
        **dict.fromkeys(("pareto.svg", "pareto.png", "report.html"), comparison.title),
        "leaderboard.csv": to_csv(rows),
    }
