"""`fit`: parameters of learned methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokred.commands.compare import command_line
from tokred.commands.console import Progress, say, speak
from tokred.commands.groups import ReductionOptions
from tokred.commands.options import Device, ImgSize, Model, PrecisionName, Weights
from tokred.commands.parsing import grouped
from tokred.errors import TokredError
from tokred.utils import numbers

if TYPE_CHECKING:
    from tokred.training.fit.recipe import FitRecipe

Method = Annotated[str, typer.Argument(help="Name of a method.")]
OneBudget = Annotated[
    float | None,
    typer.Option("--budget", "-b", help="Fraction of FLOPs to save; by default, fit for any budget."),
]
AnyBudget = Annotated[bool, typer.Option("--any-budget", help="One adapter for all budgets (the default).")]
Full = Annotated[bool, typer.Option("--full", help="Train all weights, not only the reducers'.")]
Recipe = Annotated[
    str | None, typer.Option(help="Name or YAML file of a recipe; by default reducer, or full with --full.")
]
Images = Annotated[int | None, typer.Option(help="Number of training images, instead of the recipe's.")]
Data = Annotated[
    str | None, typer.Option(help="Folder or timm data set, as in compare; by default PhotoDigits.")
]
Labels = Annotated[bool, typer.Option(help="Learn from the labels as well as from the dense model.")]
Seed = Annotated[int | None, typer.Option(help="Random seed, instead of the recipe's.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", file_okay=False, help="Folder for checkpoint and adapter; by default one under runs/."
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=numbers.MOST_IMAGES_TOGETHER,
        help="Images that run together; by default 16 on a CPU, 256 elsewhere.",
    ),
]
Workers = Annotated[int, typer.Option(min=0, max=numbers.MOST_WORKERS, help="Processes that load images.")]


@dataclass(frozen=True)
class Training:
    """The recipe, and values that replace its own."""

    full: Full = False
    recipe: Recipe = None
    images: Images = None
    seed: Seed = None

    def load(self) -> FitRecipe:
        """The recipe."""
        from tokred.training.fit.recipe import load_recipe

        return load_recipe(self.recipe, self.full, self.images, self.seed)


@dataclass(frozen=True)
class Setup:
    """Images, weights and hardware; the names are those of `FitConfig`."""

    data: Data = None
    labels: Labels = True
    weights: Weights = None
    img_size: ImgSize = None
    device: Device = "auto"
    precision: PrecisionName = "auto"
    chunk: Chunk = None
    workers: Workers = 1


@grouped
def fit(
    method: Method,
    *,
    model: Model = "deit_s",
    budget: OneBudget = None,
    any_budget: AnyBudget = False,
    training: Training,
    reduction: ReductionOptions,
    setup: Setup,
    folder: Out = None,
) -> None:
    """Fit a method's reducers on the frozen backbone, or all weights; repeat to resume."""
    from tokred.training.fit.config import FitConfig
    from tokred.training.fit.job import Fit

    if budget is not None and any_budget:
        raise TokredError("Give either --budget or --any-budget, not both.")
    settings, recipe = reduction.fields_of(method, "fits"), training.load()
    config = FitConfig(method=method, recipe=recipe, model=model, budget=budget, **settings, **vars(setup))
    run = Fit(config, folder or Path("runs") / config.folder)
    speak(run.processes.rank == 0)
    say(run.describe())
    if run.resume():
        say(f"Resuming at image {run.step * recipe.batch_size} of {run.steps * recipe.batch_size}.")
    with Progress(run.steps, "steps", run.step) as advance:
        run.run(lambda fit: advance(1, fit.status()))
    say(run.stop_reason)
    path = run.finish(command_line())
    say(f"{run.status()}. Adapter and card: {path}")
