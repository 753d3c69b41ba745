"""`match`, `bench`, `methods` and `check`: what needs no data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tokred.commands.console import Progress, err, out, parse_batch_sizes, show
from tokred.commands.options import (
    Budget,
    Device,
    ImgSize,
    Model,
    PlanOptions,
    Plugins,
    PrecisionName,
    configuration,
    grouped,
    load,
)
from tokred.core import registry
from tokred.utils.text import plain_name, spaced, visible


@grouped
def match(
    *, budget: Budget = 0.3, model: Model = "deit_s", plans: PlanOptions, img_size: ImgSize = None
) -> None:
    """Print for every method the knob, tokens, FLOPs and reduction that meet a budget. Needs no data."""
    from rich.table import Table

    from tokred.core.flops import CostTable
    from tokred.core.match import match_each
    from tokred.models import zoo
    from tokred.tables.row import TOLERANCE

    config = configuration(model, (budget,), plans)
    costs = CostTable(zoo.build(model, img_size=img_size))
    matches, refused = match_each(
        costs,
        config.methods or (),
        budget,
        protocol=config.protocol,
        stages=config.stages,
        options=config.options,
    )
    title = f"{model}: {costs.dense / 1e9:.3f} G, {100 * budget:g} % to save"
    table = Table(title=title, title_justify="left", header_style="bold")
    for header in ("Method", "Knob", "Stages", "Tokens", "FLOPs (G)", "Reducers (G)", "Reduction"):
        table.add_column(
            header, overflow="fold", justify="left" if header in ("Method", "Stages", "Tokens") else "right"
        )
    for name, found in matches.items():
        gap = "" if found.gap <= TOLERANCE else f" ({100 * found.gap:.2f} points over)"
        table.add_row(
            name, f"{found.plan.reducer.knob} {found.knob}", spaced(found.plan.stages), spaced(found.plan.tokens),
            f"{found.flops / 1e9:.4f}", f"{found.reducer_flops / 1e9:.4f}", f"{found.reduction:.3%}{gap}",
        )  # fmt: skip
    if table.row_count:
        out.print(table)
    for error in refused.values():
        err.print(escape(visible(str(error))), soft_wrap=True)
    if refused:
        raise typer.Exit(1 if table.row_count else 2)


@grouped
def bench(
    *,
    budget: Budget = 0.3,
    model: Model = "deit_s",
    plans: PlanOptions,
    img_size: ImgSize = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Images in a pass, such as 1,16,128; by default 16, or 256 on a GPU.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run every model, the dense one too, through torch.compile.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(help="How often each model is timed, in turns with all others.")
    ] = 15,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="CSV file; by default one under runs/.")
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Time reduced models against the dense one, and tell how much of the promised speed-up they keep. Needs no data."""
    from tokred.evaluation import bench as speed
    from tokred.evaluation.config import Config
    from tokred.utils.atomic import check_writable

    check_writable((out_file or Path("runs/bench.csv")).parent)
    config = Config(
        model,
        (budget,),
        img_size=img_size,
        device=device,
        precision=precision,
        controls=plans.methods is None,
        **plans.fields(),
    )
    job = speed.Bench(config, parse_batch_sizes(batch_size), rounds, compiled)
    size = [f"{img_size}px"] if img_size else []
    what = [
        plain_name(model),
        *size,
        f"{budget:g}",
        *map(str, job.batch_sizes),
        *(["compile"] if compiled else []),
    ]
    target = out_file or Path("runs") / f"bench-{'-'.join(what)}.csv"
    with Progress(rounds * len(job.batch_sizes), "rounds") as advance:
        rows = job.run(target, advance)
    title = f"{model}, {100 * budget:g} % of FLOPs to save, {job.device}, {rows[0].precision}"
    show(speed.table(rows, title).render())
    out.print(escape(f"All figures: {target}"), soft_wrap=True)
    if any(row.error for row in rows):
        raise typer.Exit(1)


def methods(plugins: Plugins = None) -> None:
    """List all methods with what they do, their site, default layers and knob."""
    load(plugins)
    from rich.table import Table

    table = Table(header_style="bold")
    for header in ("Method", "What it does", "Site", "Layers", "Knob", "Source"):
        table.add_column(header, overflow="fold")
    for entry in registry.catalog().values():
        layers = entry.facts.get("stages", (4, 7, 10))
        what = entry.summary + (" (control)" if entry.facts.get("control") else "")
        table.add_row(
            entry.name, escape(what), entry.facts.get("site", "mid"), layers if isinstance(layers, str) else spaced(layers),
            entry.facts.get("knob", "rate"), escape(entry.paper),
        )  # fmt: skip
    out.print(table)


def check(
    method: Annotated[str, typer.Argument(help="A registered name, or module:Class.")],
    plugins: Plugins = None,
) -> None:
    """Run the battery of tests that every method must pass."""
    load(plugins)
    if ":" in method:
        sys.path.append(
            str(Path.cwd())
        )  # a method under development is looked for where the command runs, after what is installed
    from tokred.testing import CHECKS, check_reducer

    problems = check_reducer(
        registry.get(method), progress=lambda name: out.print(f"  {name}", highlight=False)
    )
    for name, problem in problems.items():
        err.print(escape(f"{name}: {problem}"), soft_wrap=True)
    out.print(f"{method}: {len(CHECKS) - len(problems)} of {len(CHECKS)} checks passed.")
    if problems:
        raise typer.Exit(1)
