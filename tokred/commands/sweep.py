"""`sweep`: methods at several FLOP budgets."""

from __future__ import annotations

from typing import Annotated

import typer

from tokred.commands.compare import Rounds, run_comparison
from tokred.commands.options import (
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

Budgets = Annotated[str, typer.Option(help="FIRST:LAST:STEP, or comma-separated budgets.")]


@grouped
def sweep(
    *,
    budgets: Budgets = "0.1:0.6:0.1",
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
    """Evaluate methods at several FLOP budgets in one pass: accuracy against FLOPs."""
    from tokred.evaluation.config import budget_range

    config = configuration(model, budget_range(budgets), plans, images, rows, how)
    run_comparison(config, folder, workers, bench, form)
