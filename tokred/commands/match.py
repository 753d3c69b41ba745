"""`match`: the plans that meet a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tokred.commands.console import err, say, show_records
from tokred.commands.groups import PlanOptions, configuration
from tokred.commands.options import Budget, Format, ImgSize, Model
from tokred.commands.parsing import grouped
from tokred.tables.render import Table, check_format
from tokred.utils.text import spaced

if TYPE_CHECKING:
    from tokred.core.match import Match

HEADERS = ("Method", "Knob", "Stages", "Tokens", "FLOPs (G)", "Reducers (G)", "Reduction")


@grouped
def match(
    *,
    budget: Budget = 0.3,
    model: Model = "deit_s",
    plans: PlanOptions,
    img_size: ImgSize = None,
    form: Format = "table",
) -> None:
    """Print the plan of every method for a budget: knob, tokens, FLOPs. Needs no data."""
    from tokred.core.costs import CostTable
    from tokred.core.match import match_each
    from tokred.models import zoo

    check_format(form)
    config = configuration(model, (budget,), plans)
    costs = CostTable(zoo.outline(model, img_size))
    settings: Any = {name: getattr(config, name) for name in ("protocol", "stages", "options")}
    matches, refused = match_each(costs, config.methods or (), budget, schedule=config.counts, **settings)
    parts = [f"{100 * budget:g} % to save" for budget in config.budgets]
    parts += [] if config.counts.uniform else [f"{config.counts.name} schedule"]
    if matches:
        table = Table(
            title=", ".join((f"{model}: {costs.dense / 1e9:.3f} G", *parts)),
            headers=HEADERS,
            rows=[_cells(name, match) for name, match in matches.items()],
            words=frozenset((0, 1, 2, 3)),
        )
        schedule = "" if config.counts.uniform else config.counts.name
        records = [{**_record(name, match), "schedule": schedule} for name, match in matches.items()]
        show_records(table, records, form)
    for sentence in dict.fromkeys(map(str, refused.values())):
        say(sentence, err)
    if refused:
        raise typer.Exit(1 if matches else 2)


def _cells(name: str, match: Match) -> tuple[str, ...]:
    from tokred.tables.row import TOLERANCE

    gap = "" if match.gap <= TOLERANCE else f" ({100 * match.gap:.2f} points more than asked)"
    record = _record(name, match)
    return (
        name,
        f"{match.knob_name} {match.knob}",
        record["stages"],
        record["tokens"],
        f"{record['gflops']:.4f}",
        f"{record['reducer_gflops']:.4f}",
        f"{match.reduction:.3%}{gap}",
    )


def _record(name: str, match: Match) -> dict[str, Any]:
    """The match under the names of the leaderboard's columns."""
    return {
        "method": name,
        "knob": match.knob,
        "stages": spaced(match.plan.stages),
        "tokens": spaced(match.plan.tokens),
        "gflops": match.flops / 1e9,
        "reducer_gflops": match.reducer_flops / 1e9,
        "reduction": match.reduction,
    }
