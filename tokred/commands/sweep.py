"""`sweep`: methods at several FLOP budgets."""

from __future__ import annotations

from typing import Annotated

import typer

from tokred.commands.compare import run_comparison
from tokred.commands.groups import ComparisonOptions
from tokred.commands.parsing import grouped

Budgets = Annotated[str, typer.Option(help="FIRST:LAST:STEP, or comma-separated budgets.")]


@grouped
def sweep(*, budgets: Budgets = "0.1:0.6:0.1", options: ComparisonOptions) -> None:
    """Evaluate methods at several FLOP budgets in one pass: accuracy against FLOPs."""
    from tokred.evaluation.config import budget_range

    run_comparison(options.configuration(budget_range(budgets)), options)
