"""`show`: pictures of the tokens that methods merge, keep and drop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tokred.commands.console import err, out, say
from tokred.commands.groups import FittedOptions, ImageOptions, PlanOptions, RunOptions, configuration
from tokred.commands.options import Model
from tokred.commands.parsing import grouped, parse_numbers

Files = Annotated[
    list[Path] | None, typer.Argument(help="Image files; by default images of the data set.", metavar="IMAGE")
]
Index = Annotated[
    str | None,
    typer.Option(help="Indices of images in the data set, such as 3,17,40; by default the first three."),
]
Disagree = Annotated[
    int | None, typer.Option(help="Number of images to show, those on which models disagree most.")
]
Among = Annotated[int | None, typer.Option(help="Number of images to search with --disagree; by default 64.")]
Budgets = Annotated[
    str,
    typer.Option(
        "--budget", "--budgets", "-b", help="Fraction of FLOPs to save, or several, such as 0.2,0.4."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(help="Longer side of each picture in pixels; by default the image's, from 224 to 384."),
]
ShowStages = Annotated[str, typer.Option(help='Stages to show: last, all, or layers such as "4 7 10".')]
Target = Annotated[
    Path | None,
    typer.Option("--out", dir_okay=False, help="A .png, .webp or .jpg file; by default one under runs/."),
]


@dataclass(frozen=True)
class ChosenImages(ImageOptions):
    """The data set, the images of it to show, and the weights."""

    limit: Among = None
    index: Index = None
    disagree: Disagree = None

    def fields(self) -> dict[str, Any]:
        """As fields of `Config`."""
        return {name: value for name, value in super().fields().items() if name not in ("index", "disagree")}


@grouped
def show(
    files: Files = None,
    *,
    budget: Budgets = "0.3",
    model: Model = "deit_s",
    plans: PlanOptions,
    images: ChosenImages,
    fitted: FittedOptions,
    how: RunOptions,
    show_stages: ShowStages = "last",
    size: Size = None,
    target: Target = None,
) -> None:
    """Draw the tokens that methods merge, keep and drop, and the predictions that change."""
    from tokred.evaluation.config import budget_range
    from tokred.utils.atomic import check_writable
    from tokred.visualize.gallery import check_suffix
    from tokred.visualize.show import Showing

    config = configuration(model, budget_range(budget), plans, images, fitted, how)
    layers: Any = show_stages
    if show_stages not in ("last", "all"):
        layers = parse_numbers(show_stages, "--show-stages", 'last, all, or layers, such as "4 7 10"')
    index = parse_numbers(images.index, "--index", "indices of images, such as 3,17,40")
    if target is not None:
        check_suffix(target)
    showing = Showing(config, files or (), index, images.disagree, layers, size)
    path = target or Path("runs") / showing.file_name
    check_writable(path.parent)
    with err.status("Following the images through the models"):
        gallery = showing.run()
    gallery.save(path)
    _print(gallery)
    say(f"Picture: {path}")
    for name, reason in gallery.refused.items():
        say(f"{name}: {reason}", err)
    if gallery.failed:
        raise typer.Exit(1)


def _print(gallery: Any) -> None:
    """Print pictures if the terminal has colours, else a table."""
    from tokred.visualize import terminal

    coloured = out.is_terminal and out.color_system in ("truecolor", "256")
    for part in terminal.pictures(gallery, out.width) if coloured else [terminal.table(gallery).render()]:
        out.print(part)
