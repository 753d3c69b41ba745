"""`train` and `fit`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tokred.commands.console import Progress, out, parse_layers, parse_settings, speak
from tokred.commands.options import (
    ImgSize,
    Model,
    Plugins,
    PrecisionName,
    ProtocolName,
    Settings,
    Stages,
    Weights,
    load,
)
from tokred.errors import TokredError
from tokred.utils.text import visible


def train(
    model: Model = "deit_t",
    recipe: Annotated[
        str | None, typer.Option(help="Recipe by name or YAML file; by default the model's, if there is one.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Images to see, in place of the recipe's.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights and images, in place of the recipe's.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for checkpoint and weights; by default runs/train-MODEL."),
    ] = None,
    precision: PrecisionName = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw images.")] = 1,
) -> None:
    """Train a backbone on PhotoDigits. A killed run goes on where it stopped, with the same command."""
    import torch

    from tokred import configs
    from tokred.training.backbone.recipe import Recipe
    from tokred.training.backbone.train import Trainer
    from tokred.utils import devices

    values = configs.load("train", recipe) if recipe else configs.find("train", model) or {}
    values |= {key: value for key, value in {"images": images, "seed": seed}.items() if value is not None}
    chosen = configs.parse(Recipe, {**values, "model": model}, recipe or model)
    target = folder or Path("runs") / f"train-{model}"
    trainer = Trainer(chosen, target, devices.resolve_precision(precision, torch.device("cpu")), workers)
    if trainer.resume():
        out.print(f"Going on at image {trainer.step * chosen.batch_size} of {chosen.images}.")
    with Progress(chosen.steps, "steps", trainer.step) as advance:
        trainer.run(lambda state: advance(1, f"accuracy {state.accuracy:.1%}"))
    path = trainer.finish("tokred " + shlex.join(sys.argv[1:]))
    out.print(escape(f"Weights and card: {path}"), soft_wrap=True)


def fit(
    method: Annotated[str, typer.Argument(help="A registered name.")],
    model: Model = "deit_s",
    budget: Annotated[
        float | None,
        typer.Option("--budget", "-b", help="Fraction of FLOPs to save; by default fit for any."),
    ] = None,
    any_budget: Annotated[
        bool, typer.Option("--any-budget", help="One adapter for all budgets (the default).")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Train all weights, not only the reducers'.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe by name or YAML file; by default reducer, or full.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Images to see, in place of the recipe's length.")
    ] = None,
    settings: Settings = None,
    plugins: Plugins = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    data: Annotated[
        str | None, typer.Option(help="Folder or timm data set, as for compare; by default PhotoDigits.")
    ] = None,
    labels: Annotated[
        bool, typer.Option(help="Learn from labels too, not only from the unreduced model.")
    ] = True,
    weights: Weights = None,
    img_size: ImgSize = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of parameters and images, in place of the recipe's.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for checkpoint and adapter; by default one under runs/."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    precision: PrecisionName = "auto",
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Images that run together; by default 16 on a CPU, 256 elsewhere."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 1,
) -> None:
    """Fit a method's reducers on the frozen backbone, or the whole model. A killed run goes on with the same command."""
    load(plugins)
    from tokred.training.fit.config import FitConfig
    from tokred.training.fit.job import Fit
    from tokred.training.fit.recipe import load_recipe

    if budget is not None and any_budget:
        raise TokredError("Give --budget to fit for one budget, or --any-budget for all, not both.")
    options = parse_settings(settings)
    for other in options.keys() - {method}:
        raise TokredError(
            f"--set {other}.{next(iter(options[other]))} is no option of {method}, which is what is fitted."
        )
    chosen = load_recipe(recipe, full, images, seed)
    config = FitConfig(
        method, chosen, model, budget, options.get(method, {}), protocol, parse_layers(stages), data,  # type: ignore[arg-type]
        weights, labels, device, precision, chunk, workers, img_size,
    )  # fmt: skip
    run = Fit(config, folder or Path("runs") / config.folder)
    speak(run.processes.rank == 0)
    out.print(escape(visible(run.describe())), soft_wrap=True)
    if run.resume():
        out.print(f"Going on at image {run.step * chosen.batch_size} of {run.steps * chosen.batch_size}.")
    with Progress(run.steps, "steps", run.step) as advance:
        run.run(lambda state: advance(1, state.status()))
    if run.stop_reason:
        out.print(run.stop_reason, soft_wrap=True, highlight=False)
    path = run.finish("tokred " + shlex.join(sys.argv[1:]))
    out.print(escape(f"{run.status()}. Adapter and card: {path}"), soft_wrap=True)
