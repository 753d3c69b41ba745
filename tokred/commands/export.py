"""`export`: write a reduced model to a file that runs without tokred."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tokred.commands.console import err, say, show
from tokred.commands.groups import ScheduleOptions
from tokred.commands.options import DEFAULT_BUDGET, Budget, Data, ImgSize, Model, Weights
from tokred.commands.parsing import grouped
from tokred.core.schedule import UNIFORM

_IMAGES = 64  # on which a file is checked

Method = Annotated[str, typer.Option(help="The method; `tokred methods` lists them.")]
OutFile = Annotated[Path, typer.Option("--out", dir_okay=False, help="The file to write.")]
Form = Annotated[
    str | None,
    typer.Option("--format", help="onnx, or pt2 for torch.export; by default the suffix of --out."),
]
DynamicBatch = Annotated[
    bool, typer.Option("--dynamic-batch", help="Let the file take any number of images; else it takes one.")
]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Run the file: predictions, differences, and speed-up over the dense model."
    ),
]


@grouped
def export(
    *,
    out_file: OutFile,
    method: Method = "lotm",
    budget: Budget = DEFAULT_BUDGET,
    model: Model = "deit_s",
    reduction: ScheduleOptions,
    form: Form = None,
    dynamic_batch: DynamicBatch = False,
    check: Check = False,
    data: Data = None,
    weights: Weights = None,
    img_size: ImgSize = None,
) -> None:
    """Export a reduced model to ONNX or torch.export, and check the file."""
    import torch

    from tokred import api
    from tokred.data import loading, preprocessing, sources
    from tokred.evaluation import export_check
    from tokred.models import zoo
    from tokred.models.export import check_form
    from tokred.models.export import export as write

    kind = check_form(form or out_file.suffix.removeprefix("."))
    chosen = reduction.fields_of(method, "exports")
    source = sources.open_source(data)
    loaded = zoo.load_for(model, weights, source.weights, img_size)
    options = chosen.pop("options")
    counts = chosen["schedule"] or UNIFORM
    alone = counts.tokens is not None and budget == DEFAULT_BUDGET
    reduced = api.reduce(loaded.model, method, None if alone else budget, **chosen, **options)
    with err.status(Text(f"Exporting {method}")):  # a Text has no markup
        write(reduced, out_file, kind, dynamic_batch=dynamic_batch)
    say(f"Weights: {loaded.weights}. File: {out_file}, {out_file.stat().st_size / 1e6:.1f} MB.", err)
    if not check:
        return
    index = range(min(_IMAGES, len(source)))
    (batch,) = loading.batches(source, preprocessing.prepare(loaded.model), [index], workers=0)
    with err.status("Running the file beside the dense model"):
        result = export_check.check(out_file, kind, reduced, batch.images, dynamic=dynamic_batch)
    saved = f"{counts.name} schedule" if alone else f"{100 * budget:g} % of FLOPs saved"
    title = f"{model}, {method}, {saved}, {kind}, {torch.get_num_threads()} threads"
    show(result.table(title).render())
    if result.same < result.images:
        raise typer.Exit(1)
