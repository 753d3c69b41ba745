"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokred.utils import numbers

Model = Annotated[
    str, typer.Option("--model", "-m", help="deit_t, deit_s, deit_b, any timm ViT, or hf-hub:OWNER/NAME.")
]
ConfigName = Annotated[
    str | None,
    typer.Option(
        "--config", help="Name (see `tokred configs`) or YAML file of a configuration; flags override it."
    ),
]
DEFAULT_BUDGET = 0.3
Budget = Annotated[float, typer.Option("--budget", "-b", help="Fraction of FLOPs to save, between 0 and 1.")]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        "--method",
        help="Methods and groups (core, all, merging, pruning, learned, training-free); by default core.",
    ),
]
ProtocolName = Annotated[
    str, typer.Option(help="native: each method's published layers; common: layers 4, 7, 10 for all.")
]
Stages = Annotated[
    str | None, typer.Option(help='Layers for all methods, one-based, such as "4 7 10", or all.')
]
ScheduleName = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="decreasing, another name, or a YAML file: layers and token counts for all methods.",
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(help='Tokens kept after each stage, such as "150 115 89", in place of a budget.'),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Option of a method, such as lotm.order=append. Repeatable.")
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="Python file or module that registers methods. Repeatable."),
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
PrecisionName = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Data = Annotated[
    str | None,
    typer.Option(help="Folder of images, or a timm data set such as hfds/NAME; by default PhotoDigits."),
]
Split = Annotated[
    str | None, typer.Option(help="Split of the data: test for PhotoDigits, validation elsewhere.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weight file, or hf-hub:OWNER/NAME; by default shipped weights, or timm's with --data."
    ),
]
Labels = Annotated[
    bool, typer.Option(help="Use the labels; without them, measure agreement with the dense model.")
]
ClassMap = Annotated[
    Path | None, typer.Option(help="Map from the data's classes to the model's: a .txt, .csv or .json file.")
]
Devkit = Annotated[
    Path | None,
    typer.Option(help="Labels for ImageNet's validation files in one folder: the devkit or Kaggle's CSV."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of a data set given by name (torch/, wds/), or the cache of hfds/."),
]
ImgSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels; by default the model's own.")
]
CropPct = Annotated[
    float | None,
    typer.Option(help="Visible fraction of the resized image's side, such as 0.875; by default the model's."),
]
InterpolationName = Annotated[
    str | None, typer.Option("--interpolation", help="bicubic, bilinear ...; by default the model's.")
]
Limit = Annotated[int | None, typer.Option(help="Evaluate only the first N images; rows are marked.")]
OnErrorName = Annotated[
    str, typer.Option(help="How to treat unreadable images: fail, skip, or count-wrong (for all models).")
]
Results = Annotated[
    Path | None,
    typer.Option("--out", file_okay=False, help="Folder for the results; by default one under runs/."),
]
Format = Annotated[str, typer.Option("--format", help="What to print: table, markdown, latex, csv or json.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images that run together; by default 16 on a CPU, 256 elsewhere.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=numbers.MOST_WORKERS,
        help="Processes that load images; by default 1 on a CPU, up to 8 with a GPU.",
    ),
]
Rounds = Annotated[
    int,
    typer.Option(min=0, max=numbers.MOST_ROUNDS, help="Rounds of timing after the evaluation; 0 for none."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="Adapter, published checkpoint, or a folder of them, in place of shipped ones. Repeatable."
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="Training or unlabelled images on which thresholds of image-dependent methods are calibrated."
    ),
]
NoControls = Annotated[
    bool, typer.Option("--no-controls", help="Leave out the controls: random, lowres, smaller.")
]
AllowUnfitted = Annotated[
    bool,
    typer.Option(
        "--allow-unfitted",
        help="Evaluate learned methods that have no adapter with random parameters; rows are marked.",
    ),
]
