"""`bench`: the speed of reduced models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokred.commands.console import Progress, err, out, say, show_records
from tokred.commands.groups import PlanOptions
from tokred.commands.options import Budget, Device, Format, ImgSize, Model, PrecisionName
from tokred.commands.parsing import grouped, parse_numbers
from tokred.tables.render import check_format

BatchSizes = Annotated[
    str | None, typer.Option(help="Batch sizes, such as 1,16,128; by default 16, or 256 on a GPU.")
]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile all models, also the dense one, with torch.compile.")
]
Rounds = Annotated[int, typer.Option(help="Number of rounds; each times every model once.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", dir_okay=False, help="CSV file; by default one under runs/.")
]


@grouped
def bench(
    *,
    budget: Budget = 0.3,
    model: Model = "deit_s",
    plans: PlanOptions,
    img_size: ImgSize = None,
    batch_size: BatchSizes = None,
    compiled: Compiled = False,
    rounds: Rounds = 15,
    out_file: OutFile = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    form: Format = "table",
) -> None:
    """Measure the speed-up and efficiency of reduced models. Needs no data."""
    from tokred.evaluation import bench as speed
    from tokred.evaluation.config import Config
    from tokred.utils.atomic import check_writable

    commentary = out if check_format(form) == "table" else err
    check_writable((out_file or Path("runs/bench.csv")).parent)
    config = Config(
        model=model,
        budgets=(budget,),
        img_size=img_size,
        device=device,
        precision=precision,
        controls=plans.methods is None,
        **plans.fields(),
    )
    sizes = parse_numbers(batch_size, "--batch-size", "numbers of images, such as 1,16,128")
    job = speed.Bench(config, sizes or (), rounds, compiled)
    target = out_file or Path("runs") / job.file_name
    with Progress(rounds * len(job.batch_sizes), "rounds") as advance:
        rows = job.run(target, advance)
    show_records(speed.table(rows, job.title), rows, form)
    say(f"All columns: {target}", commentary)
    if any(row["error"] for row in rows):
        raise typer.Exit(1)
