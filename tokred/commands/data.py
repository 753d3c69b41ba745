"""`data`: the images and labels of a comparison."""

from __future__ import annotations

from typing import Annotated

import typer

from tokred.commands.console import err, out, say, show_records
from tokred.commands.options import ClassMap, DataDir, Devkit, Format, Labels, Model, Split, Weights
from tokred.tables.render import Table, check_format

Images = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of images, or a timm data set, as in compare --data.")
]


def data(
    images: Images,
    model: Model = "deit_s",
    split: Split = None,
    labels: Labels = True,
    class_map: ClassMap = None,
    devkit: Devkit = None,
    data_dir: DataDir = None,
    weights: Weights = None,
    form: Format = "table",
) -> None:
    """Check the images and labels that compare would use, without reading an image."""
    from tokred.data import preflight, sources
    from tokred.models import zoo

    commentary = out if check_format(form) == "table" else err
    files = {"class_map": class_map, "devkit": devkit, "data_dir": data_dir}
    places = {name: None if path is None else str(path) for name, path in files.items()}
    source = sources.open_source(images, split, labels=labels, **places)
    if weights is None and source.weights == "pretrained":
        classes, about = zoo.build(model).num_classes, f"timm's {zoo.timm_name(model)}"
    else:
        loaded = zoo.load_for(model, weights, source.weights)
        classes, about = loaded.model.num_classes, loaded.weights
    source = preflight.align(source, classes, about, own=weights is not None)
    facts = {**preflight.facts(source), "Weights": f"{about}, {classes:,} classes"}
    table = Table(
        title=source.name, headers=("", ""), rows=list(facts.items()), words=frozenset((0, 1)), titled=True
    )
    show_records(table, [facts], form)
    say(source.note, err, "Note:", "yellow")
    if not source.note:
        say("File names and labels are consistent.", commentary)
