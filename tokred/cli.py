"""The command line. No logic here; heavy imports wait inside the commands, so that --help is instant."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tokred import __version__, registry
from tokred.errors import TokredError

app = typer.Typer(
    help="Compare token-reduction methods for Vision Transformers at one FLOP budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True)

Model = Annotated[str, typer.Option("--model", "-m", help="deit_t, deit_s, deit_b, or any ViT of timm.")]
Budget = Annotated[float, typer.Option("--budget", "-b", help="Fraction of FLOPs to save, between 0 and 1.")]
Methods = Annotated[str | None, typer.Option(help="Comma-separated methods; by default all.")]
ProtocolName = Annotated[str, typer.Option(help="native: each method's published layers; common: layers 4, 7, 10 for all.")]
Stages = Annotated[str | None, typer.Option(help='Layers for all methods, one-based, such as "4 7 10".')]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Option of a method, such as lotm.order=append. Repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
PrecisionName = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]


@app.command()
def compare(
    budget: Budget = 0.3,
    model: Model = "deit_s",
    methods: Methods = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    settings: Settings = None,
    data: Annotated[str | None, typer.Option(help="Folder of class folders, or a timm data set; by default PhotoDigits.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data: test for PhotoDigits, validation elsewhere.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weight file; by default the shipped ones, or timm's with --data.")] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate only the first images; the rows say so.")] = None,
    seed: Seed = 0,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the results; by default one under runs/.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    precision: PrecisionName = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Images that run together; by default 16 on a CPU, 256 elsewhere.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    adapters: Annotated[list[str] | None, typer.Option(help="Adapter or folder of them, used before the shipped ones. Repeatable.")] = None,
    allow_unfitted: Annotated[bool, typer.Option("--allow-unfitted", help="Show unfitted learned methods too, marked.")] = False,
) -> None:
    """Evaluate all methods at one FLOP budget and write their leaderboard."""
    from tokred import results
    from tokred.comparison import Job
    from tokred.config import Config

    config = Config(
        model, budget, _names(methods), _options(settings), protocol, _layers(stages), data, split,  # type: ignore[arg-type]
        None if weights is None else str(weights), limit, seed, device, precision, batch_size,
        tuple(adapters or ()), allow_unfitted,
    )  # fmt: skip
    job = Job(config)
    out.print(escape(job.describe()), soft_wrap=True)
    target = folder or Path("runs") / f"{model.replace('/', '-')}-{job.source.name}-{budget:g}-{job.key}"
    with _Progress(len(job.source), "images") as advance:
        comparison = job.run(target, workers, advance)
    out.print(results.terminal_table(comparison.rows, comparison.title))
    out.print(escape(f"{comparison.seconds:.0f} s. Leaderboard, tables and per-image predictions: {target}"), soft_wrap=True)
    if comparison.failed:
        for row in comparison.failed:
            err.print(escape(f"{row.method}: {row.error}"), soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def match(
    budget: Budget = 0.3,
    model: Model = "deit_s",
    methods: Methods = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    settings: Settings = None,
) -> None:
    """Print for every method the knob, tokens, FLOPs and reduction that meet a budget. Needs no data."""
    from rich.table import Table

    from tokred import zoo
    from tokred.budget import TOLERANCE, match_each
    from tokred.config import Config, method_names
    from tokred.flops import CostTable

    config = Config(model, budget, _names(methods), _options(settings), protocol, _layers(stages))  # type: ignore[arg-type]
    costs = CostTable(zoo.build(model))
    matches, refused = match_each(
        costs, method_names(config), budget, protocol=config.protocol, stages=config.stages, options=config.options
    )
    title = f"{model}: {costs.dense / 1e9:.3f} G, {100 * budget:g} % to save"
    table = Table(title=title, title_justify="left", header_style="bold")
    for header in ("Method", "Knob", "Stages", "Tokens", "FLOPs (G)", "Reducers (G)", "Reduction"):
        table.add_column(header, overflow="fold", justify="left" if header in ("Method", "Stages", "Tokens") else "right")
    for name, found in matches.items():
        gap = "" if found.gap <= TOLERANCE else f" ({100 * found.gap:.2f} points over)"
        table.add_row(
            name, f"{found.plan.reducer.knob} {found.knob}", _spaced(found.plan.stages), _spaced(found.plan.tokens),
            f"{found.flops / 1e9:.4f}", f"{found.reducer_flops / 1e9:.4f}", f"{found.reduction:.3%}{gap}",
        )  # fmt: skip
    if table.row_count:
        out.print(table)
    for error in refused.values():
        err.print(escape(str(error)), soft_wrap=True)
    if refused:
        raise typer.Exit(1 if table.row_count else 2)


@app.command()
def bench(
    budget: Budget = 0.3,
    model: Model = "deit_s",
    methods: Methods = None,
    batch_size: Annotated[str | None, typer.Option(help="Images in a pass, such as 1,16,128; by default 16, or 256 on a GPU.")] = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    settings: Settings = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Run every model, the dense one too, through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each model is timed, in turns with all others.")] = 15,
    out_file: Annotated[Path | None, typer.Option("--out", help="CSV file; by default runs/bench-MODEL-BUDGET.csv.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Time reduced models against the dense one, and tell how much of the promised speed-up they keep. Needs no data."""
    from tokred import bench as speed
    from tokred.config import Config

    config = Config(
        model, budget, _names(methods), _options(settings), protocol, _layers(stages), device=device, precision=precision  # type: ignore[arg-type]
    )  # fmt: skip
    job = speed.Bench(config, _batch_sizes(batch_size), rounds, compiled)
    target = out_file or Path("runs") / f"bench-{model.replace('/', '-')}-{budget:g}.csv"
    speed.write_csv(target, [])  # before minutes of work depend on that
    with _Progress(rounds * len(job.batch_sizes), "rounds") as advance:
        rows = job.run(target, advance)
    out.print(speed.table(rows, f"{model}, {100 * budget:g} % of FLOPs to save, {job.device}, {rows[0].precision}"))
    out.print(escape(f"All figures: {target}"), soft_wrap=True)
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _batch_sizes(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in (text or "").replace(",", " ").split())
    except ValueError:
        raise TokredError(f"--batch-size takes numbers of images, such as 1,16,128; got {text!r}.") from None


@app.command()
def methods() -> None:
    """List all methods with what they do, their site, default layers and knob."""
    from rich.table import Table

    table = Table(header_style="bold")
    for header in ("Method", "What it does", "Site", "Layers", "Knob", "Source"):
        table.add_column(header, overflow="fold")
    for entry in registry.catalog().values():
        layers = entry.facts.get("stages", (4, 7, 10))
        what = entry.summary + (" (control)" if entry.facts.get("control") else "")
        table.add_row(
            entry.name, escape(what), entry.facts.get("site", "mid"), layers if isinstance(layers, str) else _spaced(layers),
            entry.facts.get("knob", "rate"), escape(entry.paper),
        )  # fmt: skip
    out.print(table)


@app.command()
def train(
    model: Model = "deit_t",
    recipe: Annotated[str | None, typer.Option(help="Recipe by name or YAML file; by default train_MODEL, if there is one.")] = None,
    images: Annotated[int | None, typer.Option(help="Images to see, in place of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and images, in place of the recipe's.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for checkpoint and weights; by default runs/train-MODEL.")] = None,
    precision: PrecisionName = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw images.")] = 1,
) -> None:
    """Train a backbone on PhotoDigits. A killed run goes on where it stopped, with the same command."""
    import torch

    from tokred import configs, evaluate
    from tokred.recipe import Recipe
    from tokred.train import Trainer

    values = configs.load(recipe) if recipe else configs.find(f"train_{model}") or {}
    values |= {key: value for key, value in {"images": images, "seed": seed}.items() if value is not None}
    chosen = configs.parse(Recipe, {**values, "model": model}, recipe or f"train_{model}")
    target = folder or Path("runs") / f"train-{model}"
    trainer = Trainer(chosen, target, evaluate.resolve_precision(precision, torch.device("cpu")), workers)
    if trainer.resume():
        out.print(f"Going on at image {trainer.step * chosen.batch_size} of {chosen.images}.")
    with _Progress(chosen.steps, "steps", trainer.step) as advance:
        trainer.run(lambda state: advance(1, f"accuracy {state.accuracy:.1%}"))
    path = trainer.finish("tokred " + shlex.join(sys.argv[1:]))
    out.print(escape(f"Weights and card: {path}"), soft_wrap=True)


@app.command()
def fit(
    method: Annotated[str, typer.Argument(help="A registered name.")],
    model: Model = "deit_s",
    budget: Annotated[float | None, typer.Option("--budget", "-b", help="Fraction of FLOPs to save; by default fit for any.")] = None,
    any_budget: Annotated[bool, typer.Option("--any-budget", help="One adapter for all budgets (the default).")] = False,
    full: Annotated[bool, typer.Option("--full", help="Train all weights, not only the reducers'.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Recipe by name or YAML file; by default fit_reducer, or fit_full.")] = None,
    images: Annotated[int | None, typer.Option(help="Images to see, in place of the recipe's length.")] = None,
    settings: Settings = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    data: Annotated[str | None, typer.Option(help="Folder or timm data set, as for compare; by default PhotoDigits.")] = None,
    labels: Annotated[bool, typer.Option(help="Learn from labels too, not only from the unreduced model.")] = True,
    weights: Annotated[Path | None, typer.Option(help="Weight file; by default the shipped ones, or timm's with --data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of parameters and images, in place of the recipe's.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for checkpoint and adapter; by default one under runs/.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    precision: PrecisionName = "auto",
    chunk: Annotated[int | None, typer.Option(min=1, help="Images that run together; by default 16 on a CPU, 256 elsewhere.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 1,
) -> None:
    """Fit a method's reducers on the frozen backbone, or the whole model. A killed run goes on with the same command."""
    from tokred.fit.config import FitConfig
    from tokred.fit.job import Fit
    from tokred.fit.recipe import load_recipe

    if budget is not None and any_budget:
        raise TokredError("Give --budget to fit for one budget, or --any-budget for all, not both.")
    options = _options(settings)
    for other in options.keys() - {method}:
        raise TokredError(f"--set {other}.{next(iter(options[other]))} is no option of {method}, which is what is fitted.")
    chosen = load_recipe(recipe, full, images, seed)
    config = FitConfig(
        method, chosen, model, budget, options.get(method, {}), protocol, _layers(stages), data,  # type: ignore[arg-type]
        None if weights is None else str(weights), labels, device, precision, chunk, workers,
    )  # fmt: skip
    run = Fit(config, folder or Path("runs") / config.folder)
    out.quiet = err.quiet = run.processes.rank > 0  # of several processes one speaks
    out.print(escape(run.describe()), soft_wrap=True)
    if run.resume():
        out.print(f"Going on at image {run.step * chosen.batch_size} of {run.steps * chosen.batch_size}.")
    with _Progress(run.steps, "steps", run.step) as advance:
        run.run(lambda state: advance(1, state.status()))
    path = run.finish("tokred " + shlex.join(sys.argv[1:]))
    out.print(escape(f"{run.status()}. Adapter and card: {path}"), soft_wrap=True)


@app.command()
def check(method: Annotated[str, typer.Argument(help="A registered name, or module:Class.")]) -> None:
    """Run the battery of tests that every method must pass."""
    sys.path.insert(0, str(Path.cwd()))  # a method under development is looked for where the command runs
    from tokred.testing import CHECKS, check_reducer

    problems = check_reducer(registry.get(method), progress=lambda name: out.print(f"  {name}", highlight=False))
    for name, problem in problems.items():
        err.print(escape(f"{name}: {problem}"), soft_wrap=True)
    out.print(f"{method}: {len(CHECKS) - len(problems)} of {len(CHECKS)} checks passed.")
    if problems:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of tokred itself."""
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit


def main() -> None:
    """Entry point: errors that are the user's to solve are one sentence and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries warn each other; users need not read it
    try:
        app(standalone_mode=True)
    except TokredError as error:
        err.quiet = False
        err.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None


class _Progress:
    """A progress bar that knows the remaining time; `with` gives a function that advances it."""

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("remaining"), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.description}"), console=err)
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Callable[..., None]:
        self.bar.start()
        return lambda count, description="": self.bar.update(self.task, advance=count, description=description)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(layer) for layer in text.replace(",", " ").split())
    except ValueError:
        raise TokredError(f'--stages takes layer numbers, such as "4 7 10"; got {text!r}.') from None


def _options(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for setting in settings or []:
        target, equals, value = setting.partition("=")
        method, dot, name = target.partition(".")
        if not (equals and dot and method and name):
            raise TokredError(f"--set takes METHOD.OPTION=VALUE, such as lotm.order=append; got {setting!r}.")
        options.setdefault(method, {})[name] = value
    return options


def _spaced(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
