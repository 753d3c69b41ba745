"""`train`: the backbones of the embedded benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokred.commands.compare import command_line
from tokred.commands.console import Progress, say
from tokred.commands.options import Model, PrecisionName
from tokred.utils import numbers


def train(
    model: Model = "deit_t",
    recipe: Annotated[
        str | None,
        typer.Option(help="Name or YAML file of a recipe; by default the model's, if there is one."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of training images, instead of the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed, instead of the recipe's.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", file_okay=False, help="Folder for checkpoint and weights; by default runs/train-MODEL."
        ),
    ] = None,
    precision: PrecisionName = "auto",
    workers: Annotated[
        int, typer.Option(min=0, max=numbers.MOST_WORKERS, help="Processes that draw images.")
    ] = 1,
) -> None:
    """Train a backbone on PhotoDigits; repeat to resume."""
    import torch

    from tokred import configs
    from tokred.training.backbone.recipe import Recipe
    from tokred.training.backbone.train import Trainer
    from tokred.utils import devices

    values = configs.load("train", recipe) if recipe else configs.find("train", model) or {}
    values |= {key: value for key, value in {"images": images, "seed": seed}.items() if value is not None}
    settings = configs.parse(Recipe, {**values, "model": model}, recipe or model)
    target = folder or Path("runs") / f"train-{model}"
    trainer = Trainer(settings, target, devices.resolve_precision(precision, torch.device("cpu")), workers)
    if trainer.resume():
        say(f"Resuming at image {trainer.step * settings.batch_size} of {settings.images}.")
    with Progress(settings.steps, "steps", trainer.step) as advance:
        trainer.run(lambda run: advance(1, f"accuracy {run.accuracy:.1%}"))
    say(f"Weights and card: {trainer.finish(command_line())}")
