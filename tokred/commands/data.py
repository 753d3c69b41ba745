"""`data`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from tokred.commands.console import err, out
from tokred.commands.options import ClassMap, DataDir, Devkit, Labels, Model, Split, Weights
from tokred.utils.text import visible


def data(
    images: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Folder of images, or a timm data set, as for compare --data."),
    ],
    model: Model = "deit_s",
    split: Split = None,
    labels: Labels = True,
    class_map: ClassMap = None,
    devkit: Devkit = None,
    data_dir: DataDir = None,
    weights: Weights = None,
) -> None:
    """Tell which images and labels compare would use, and what is wrong with them. Reads no image."""
    from rich.table import Table
    from rich.text import Text

    from tokred.data import preflight, sources
    from tokred.models import zoo

    map_file, kit, folder = (None if path is None else str(path) for path in (class_map, devkit, data_dir))
    source = sources.open_source(
        images, split, labels=labels, class_map=map_file, devkit=kit, data_dir=folder
    )
    if weights is None:
        classes, about = zoo.build(model).num_classes, f"timm's {zoo.timm_name(model)}"
    else:
        loaded = zoo.load_for(model, weights)
        classes, about = loaded.model.num_classes, loaded.weights
    source = preflight.align(source, classes, about, own=weights is not None)
    table = Table(
        show_header=False, title=Text(visible(source.name), style="table.title"), title_justify="left"
    )
    for name, fact in {**preflight.facts(source), "Weights": f"{about}, {classes:,} classes"}.items():
        table.add_row(name, Text(visible(fact)))
    out.print(table)
    if source.note:
        err.print(f"[yellow]Note:[/yellow] {escape(visible(source.note))}", soft_wrap=True)
    else:
        out.print("Nothing is wrong with these images and labels, as far as names and numbers tell.")
