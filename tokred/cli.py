"""The command line. No logic here; heavy imports wait inside the commands, so that --help is instant."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from tokred import __version__, registry
from tokred.console import Progress, err, out, parse_batch_sizes, parse_layers, parse_names, parse_settings
from tokred.errors import TokredError
from tokred.text import spaced, visible

app = typer.Typer(
    help="Compare token-reduction methods for Vision Transformers at one FLOP budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Model = Annotated[str, typer.Option("--model", "-m", help="deit_t, deit_s, deit_b, or any ViT of timm.")]
Budget = Annotated[float, typer.Option("--budget", "-b", help="Fraction of FLOPs to save, between 0 and 1.")]
Methods = Annotated[str | None, typer.Option(help="Comma-separated methods; by default all.")]
ProtocolName = Annotated[str, typer.Option(help="native: each method's published layers; common: layers 4, 7, 10 for all.")]
Stages = Annotated[str | None, typer.Option(help='Layers for all methods, one-based, such as "4 7 10".')]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Option of a method, such as lotm.order=append. Repeatable.")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="Python file or module with methods to use. Repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
PrecisionName = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Data = Annotated[str | None, typer.Option(help="Folder of class folders, or a timm data set; by default PhotoDigits.")]
Split = Annotated[str | None, typer.Option(help="Split of the data: test for PhotoDigits, validation elsewhere.")]
Weights = Annotated[Path | None, typer.Option(help="Weight file; by default the shipped ones, or timm's with --data.")]
Limit = Annotated[int | None, typer.Option(help="Evaluate only the first images; the rows say so.")]
Results = Annotated[Path | None, typer.Option("--out", help="Folder for the results; by default one under runs/.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
BatchSize = Annotated[int | None, typer.Option(help="Images that run together; by default 16 on a CPU, 256 elsewhere.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that load images; by default 1 on a CPU, up to 8 beside a GPU.")]
Adapters = Annotated[list[str] | None, typer.Option(help="Adapter or folder of them, used before the shipped ones. Repeatable.")]
AllowUnfitted = Annotated[bool, typer.Option("--allow-unfitted", help="Show unfitted learned methods too, marked.")]
OnErrorName = Annotated[str, typer.Option(help="An image that cannot be read: fail, skip, or count-wrong for all models.")]


@app.command()
def compare(
    budget: Budget = 0.3,
    model: Model = "deit_s",
    methods: Methods = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    settings: Settings = None,
    plugins: Plugins = None,
    data: Data = None,
    split: Split = None,
    weights: Weights = None,
    limit: Limit = None,
    on_error: OnErrorName = "fail",
    seed: Seed = 0,
    folder: Results = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    adapters: Adapters = None,
    allow_unfitted: AllowUnfitted = False,
    bench: Annotated[int, typer.Option(min=0, help="Rounds in which each model is timed alone afterwards; 0 for none.")] = 0,
) -> None:
    """Evaluate all methods at one FLOP budget and write their leaderboard. A killed run goes on with the same command."""
    _load(plugins)
    from tokred.config import Config

    config = Config(
        model, (budget,), parse_names(methods), parse_settings(settings), protocol, parse_layers(stages), data, split,  # type: ignore[arg-type]
        None if weights is None else str(weights), limit, seed, device, precision, batch_size,
        tuple(adapters or ()), allow_unfitted, on_error,  # type: ignore[arg-type]
    )  # fmt: skip
    _run_comparison(config, folder, workers, bench)


@app.command()
def sweep(
    budgets: Annotated[str, typer.Option(help="FIRST:LAST:STEP, or budgets with commas between.")] = "0.1:0.6:0.1",
    model: Model = "deit_s",
    methods: Methods = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    settings: Settings = None,
    plugins: Plugins = None,
    data: Data = None,
    split: Split = None,
    weights: Weights = None,
    limit: Limit = None,
    on_error: OnErrorName = "fail",
    seed: Seed = 0,
    folder: Results = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    adapters: Adapters = None,
    allow_unfitted: AllowUnfitted = False,
) -> None:
    """Evaluate all methods at several FLOP budgets in one pass: accuracy against FLOPs."""
    _load(plugins)
    from tokred.config import Config, budget_range

    config = Config(
        model, budget_range(budgets), parse_names(methods), parse_settings(settings), protocol, parse_layers(stages), data, split,  # type: ignore[arg-type]
        None if weights is None else str(weights), limit, seed, device, precision, batch_size,
        tuple(adapters or ()), allow_unfitted, on_error,  # type: ignore[arg-type]
    )  # fmt: skip
    _run_comparison(config, folder, workers)


def _run_comparison(config: Any, folder: Path | None, workers: int | None, bench: int = 0) -> None:
    """Run `compare` or `sweep`, and print what came of it."""
    from tokred.comparison import Interrupted, Job

    job = Job(config)
    out.quiet = err.quiet = job.processes.rank > 0  # of several processes one speaks
    out.print(escape(visible(job.describe())), soft_wrap=True)
    budgets = f"{config.budgets[0]:g}" if len(config.budgets) == 1 else f"{config.budgets[0]:g}-{config.budgets[-1]:g}"
    target = folder or Path("runs") / f"{config.model.replace('/', '-')}-{job.source.name}-{budgets}-{job.key}"
    notice = job.open(target)
    if notice:
        out.print(escape(visible(notice)), soft_wrap=True)
    try:
        with Progress(len(job.source), "images") as advance:
            comparison = job.run(workers, advance, bench)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        if isinstance(interrupted, Interrupted):
            _print_comparison(interrupted.comparison, whole=False)
        out.print(escape(f"Interrupted. This goes on: tokred {shlex.join(sys.argv[1:])}"), soft_wrap=True)
        raise typer.Exit(130) from None
    _print_comparison(comparison)
    for row in comparison.failed:
        err.print(escape(visible(f"{row.method}: {row.error}")), soft_wrap=True)
    if comparison.failed:
        raise typer.Exit(1)


def _print_comparison(comparison: Any, whole: bool = True) -> None:
    from tokred import results

    if comparison.rows:
        out.print((results.sweep_table if comparison.swept else results.terminal_table)(comparison.rows, comparison.title))
    waiting = f" {comparison.waiting:.0%} of the time was waiting for images; more --workers may help." if comparison.waiting > 0.1 else ""
    left = f"Leaderboard, tables and per-image predictions: {comparison.out}" if whole else ""
    out.print(escape(f"{comparison.seconds:.0f} s.{waiting} {left}"), soft_wrap=True)


@app.command()
def match(
    budget: Budget = 0.3,
    model: Model = "deit_s",
    methods: Methods = None,
    protocol: ProtocolName = "native",
    stages: Stages = None,
    settings: Settings = None,
    plugins: Plugins = None,
) -> None:
    """Print for every method the knob, tokens, FLOPs and reduction that meet a budget. Needs no data."""
    from rich.table import Table

    _load(plugins)
    from tokred import zoo
    from tokred.budget import TOLERANCE, match_each
    from tokred.config import Config, method_names
    from tokred.flops import CostTable

    config = Config(model, (budget,), parse_names(methods), parse_settings(settings), protocol, parse_layers(stages))  # type: ignore[arg-type]
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
            name, f"{found.plan.reducer.knob} {found.knob}", spaced(found.plan.stages), spaced(found.plan.tokens),
            f"{found.flops / 1e9:.4f}", f"{found.reducer_flops / 1e9:.4f}", f"{found.reduction:.3%}{gap}",
        )  # fmt: skip
    if table.row_count:
        out.print(table)
    for error in refused.values():
        err.print(escape(visible(str(error))), soft_wrap=True)
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
    plugins: Plugins = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Run every model, the dense one too, through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each model is timed, in turns with all others.")] = 15,
    out_file: Annotated[Path | None, typer.Option("--out", help="CSV file; by default one under runs/.")] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Time reduced models against the dense one, and tell how much of the promised speed-up they keep. Needs no data."""
    _load(plugins)
    from tokred import bench as speed
    from tokred.config import Config
    from tokred.files import check_writable

    config = Config(
        model, (budget,), parse_names(methods), parse_settings(settings), protocol, parse_layers(stages),  # type: ignore[arg-type]
        device=device, precision=precision,
    )  # fmt: skip
    job = speed.Bench(config, parse_batch_sizes(batch_size), rounds, compiled)
    what = [model.replace("/", "-"), f"{budget:g}", *map(str, job.batch_sizes), *(["compile"] if compiled else [])]
    target = out_file or Path("runs") / f"bench-{'-'.join(what)}.csv"
    check_writable(target.parent)
    with Progress(rounds * len(job.batch_sizes), "rounds") as advance:
        rows = job.run(target, advance)
    out.print(speed.table(rows, f"{model}, {100 * budget:g} % of FLOPs to save, {job.device}, {rows[0].precision}"))
    out.print(escape(f"All figures: {target}"), soft_wrap=True)
    if any(row.error for row in rows):
        raise typer.Exit(1)


@app.command()
def methods(plugins: Plugins = None) -> None:
    """List all methods with what they do, their site, default layers and knob."""
    _load(plugins)
    from rich.table import Table

    table = Table(header_style="bold")
    for header in ("Method", "What it does", "Site", "Layers", "Knob", "Source"):
        table.add_column(header, overflow="fold")
    for entry in registry.catalog().values():
        layers = entry.facts.get("stages", (4, 7, 10))
        what = entry.summary + (" (control)" if entry.facts.get("control") else "")
        table.add_row(
            entry.name, escape(what), entry.facts.get("site", "mid"), layers if isinstance(layers, str) else spaced(layers),
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

    from tokred import configs, devices
    from tokred.recipe import Recipe
    from tokred.train import Trainer

    values = configs.load(recipe) if recipe else configs.find(f"train_{model}") or {}
    values |= {key: value for key, value in {"images": images, "seed": seed}.items() if value is not None}
    chosen = configs.parse(Recipe, {**values, "model": model}, recipe or f"train_{model}")
    target = folder or Path("runs") / f"train-{model}"
    trainer = Trainer(chosen, target, devices.resolve_precision(precision, torch.device("cpu")), workers)
    if trainer.resume():
        out.print(f"Going on at image {trainer.step * chosen.batch_size} of {chosen.images}.")
    with Progress(chosen.steps, "steps", trainer.step) as advance:
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
    plugins: Plugins = None,
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
    _load(plugins)
    from tokred.fit.config import FitConfig
    from tokred.fit.job import Fit
    from tokred.fit.recipe import load_recipe

    if budget is not None and any_budget:
        raise TokredError("Give --budget to fit for one budget, or --any-budget for all, not both.")
    options = parse_settings(settings)
    for other in options.keys() - {method}:
        raise TokredError(f"--set {other}.{next(iter(options[other]))} is no option of {method}, which is what is fitted.")
    chosen = load_recipe(recipe, full, images, seed)
    config = FitConfig(
        method, chosen, model, budget, options.get(method, {}), protocol, parse_layers(stages), data,  # type: ignore[arg-type]
        None if weights is None else str(weights), labels, device, precision, chunk, workers,
    )  # fmt: skip
    run = Fit(config, folder or Path("runs") / config.folder)
    out.quiet = err.quiet = run.processes.rank > 0  # of several processes one speaks
    out.print(escape(visible(run.describe())), soft_wrap=True)
    if run.resume():
        out.print(f"Going on at image {run.step * chosen.batch_size} of {run.steps * chosen.batch_size}.")
    with Progress(run.steps, "steps", run.step) as advance:
        run.run(lambda state: advance(1, state.status()))
    path = run.finish("tokred " + shlex.join(sys.argv[1:]))
    out.print(escape(f"{run.status()}. Adapter and card: {path}"), soft_wrap=True)


boards = typer.Typer(help="One leaderboard of many runs.", no_args_is_help=True)
app.add_typer(boards, name="leaderboard")


@boards.command("add")
def leaderboard_add(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or CSV files of their form.")],
    board: Annotated[Path, typer.Option("--board", help="The CSV to merge them into; made where there is none.")] = Path("leaderboard.csv"),
) -> None:
    """Merge runs into one CSV. Many processes may do so at once; what is measured again replaces the older row."""
    from tokred import leaderboard

    change = leaderboard.add(board, *runs)
    kept = f", {change.kept} left out for a better or newer one" if change.kept else ""
    out.print(
        escape(f"{visible(str(board))}: {change.added} added, {change.replaced} replaced{kept}; {change.total} rows."), soft_wrap=True
    )


@app.command()
def check(method: Annotated[str, typer.Argument(help="A registered name, or module:Class.")], plugins: Plugins = None) -> None:
    """Run the battery of tests that every method must pass."""
    _load(plugins)
    if ":" in method:
        sys.path.append(str(Path.cwd()))  # a method under development is looked for where the command runs, after what is installed
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
        err.print(f"[red]Error:[/red] {escape(visible(str(error)))}", soft_wrap=True)
        raise SystemExit(2) from None


def _load(plugins: list[str] | None) -> None:
    """Make the methods of `--plugin` known, before anything asks for the names that there are."""
    for target in plugins or []:
        registry.load_plugin(target)
