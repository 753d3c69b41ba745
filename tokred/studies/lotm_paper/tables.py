"""The paper's tables, measured: one comparison for each of a table's models, in a folder of its own, that can be killed and goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tokred.core.flops import CostTable
from tokred.errors import TokredError
from tokred.evaluation import published_accuracy
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config, Fixed
from tokred.evaluation.inputs import open_images
from tokred.models import zoo
from tokred.report import outputs
from tokred.studies.lotm_paper import comparison_rows, printed
from tokred.studies.lotm_paper.comparison_rows import Line
from tokred.tables import render
from tokred.tables.render import Table
from tokred.tables.row import BASELINE, Row
from tokred.utils.atomic import check_writable, write_all


class Study:
    """One table of the paper. What is wrong with data or weights shows here, before any image is evaluated.

    Args:
        number: of the table, 1 to 4.
        config: data, weights and how to run; model, methods, budgets and stages are the table's. `weights` may be a folder with a file for
            each model, named after it.
        models: of the table's, by default all.
        flops_only: compare FLOPs alone, without any data or weights.

    Attributes:
        jobs: comparisons by model.
        notes: sentences about models that cannot be measured.

    Raises:
        TokredError: no such table or model, or data that cannot be used.
    """

    def __init__(
        self, number: int, config: Config, models: Sequence[str] = (), flops_only: bool = False
    ) -> None:
        strangers = [model for model in models if model not in printed.MODELS[number]]
        if strangers:
            raise TokredError(
                f"Table {number} is about {', '.join(printed.MODELS[number])}, not {strangers[0]}."
            )
        self.number, self.models = number, tuple(models) or printed.MODELS[number]
        self.jobs: dict[str, Job] = {}
        self.notes: list[str] = []
        if flops_only:
            return
        weights = open_images(config).weights
        for model in self.models:
            try:
                self.jobs[model] = Job(
                    _configuration(number, model, config, len(self.models)), outputs=outputs.files
                )
            except TokredError as error:
                if weights == "pretrained" and model == self.models[-1] and not self.jobs:
                    raise  # for PhotoDigits there are weights of some models; of other images all were asked for
                self.notes.append(f"{model} is not measured here: {error}")

    @property
    def comparable(self) -> bool:
        """Whether the images are the paper's, ImageNet-1K's validation images, or the first of them."""
        return bool(self.jobs) and all(
            published_accuracy.is_imagenet(job.source) for job in self.jobs.values()
        )

    @property
    def title(self) -> str:
        """It cannot be mistaken for the paper's own."""
        title = printed.TITLES[self.number]
        if not self.jobs:
            return f"{title}. FLOPs alone"
        source = next(iter(self.jobs.values())).source
        where = f"{source.name} {source.split}, {len(source)} images"
        return (
            f"{title}. On {where}" if self.comparable else f"{title}. Measured on {where}, NOT on ImageNet-1K"
        )

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return all(job.processes.rank == 0 for job in self.jobs.values())

    @property
    def images(self) -> int:
        """Images to evaluate, over all models."""
        return sum(len(job.source) for job in self.jobs.values())

    def open(self, out: Path) -> list[str]:
        """Take the folder of the results; sentences about what earlier runs left there.

        Raises:
            TokredError: it is not writable, or in use.
        """
        check_writable(out)
        return [notice for notice in (job.open(out / model) for model, job in self.jobs.items()) if notice]

    def run(
        self, workers: int | None = None, progress: Callable[[int], None] = lambda images: None
    ) -> list[Line]:
        """Measure what there is to measure. Of several processes only the first one has what was found.

        Raises:
            TokredError, Interrupted: as `Job.run`.
        """
        found = []
        for model in self.models:
            here = comparison_rows.planned(self.number, model, CostTable(zoo.build(model)))
            if model in self.jobs:
                _enter(here, self.jobs[model].run(workers, progress).rows, self.comparable)
            found += here
        return found

    def table(self, found: Sequence[Line]) -> Table:
        """The lines as a table, with what is known of the paper's misprints."""
        common = printed.COMMON_NOTES if self.number > 1 else ()
        return comparison_rows.table(
            found,
            self.title,
            bool(self.jobs),
            self.comparable,
            [*self.notes, *printed.NOTES[self.number], *common],
        )

    def write(self, out: Path, found: Sequence[Line]) -> None:
        """Write the table as CSV, Markdown and LaTeX, in the first process.

        Raises:
            TokredError: they cannot be written.
        """
        if not self.first:
            return
        drawn = self.table(found)
        name = f"table{self.number}"
        files = {
            f"{name}.csv": comparison_rows.csv_text(found),
            f"{name}.md": render.markdown(drawn),
            f"{name}.tex": render.latex(drawn),
        }
        check_writable(out)
        write_all(out, {file: text.encode() for file, text in files.items()})


def _configuration(number: int, model: str, config: Config, models: int) -> Config:
    """What a table compares on one model."""
    own = [one for one in printed.lines(number) if one.model == model and one.method != BASELINE]
    fixed = tuple(
        Fixed(one.method, one.k, layers) for one in own if one.k is not None for layers in printed.LAYER_SETS
    )
    return replace(
        config,
        model=model,
        methods=tuple(dict.fromkeys(one.method for one in own)),
        budgets=() if number == 1 else (printed.BUDGET,),
        fixed=fixed,
        weights=weights_of(model, config.weights, models),
    )


def weights_of(model: str, weights: str | None, models: int = 1) -> str | None:
    """The weights of one of several models: the file of a folder that is named after it, or the only one's own.

    Raises:
        TokredError: one file for several models, or a folder that has not exactly one for this one.
    """
    if weights is None or not Path(weights).is_dir():
        if weights is not None and models > 1:
            raise TokredError(
                f"--weights {weights} is one file for {models} models; give a folder with one for each, or choose with --models."
            )
        return weights
    names = (model, zoo.timm_name(model))
    files = sorted(
        path
        for path in Path(weights).iterdir()
        if path.suffix in (".safetensors", ".pth", ".bin") and path.stem.startswith(names)
    )
    exact = [path for path in files if path.stem in names]
    if len(exact or files) != 1:
        raise TokredError(
            f"{weights} has {len(files)} weight files for {model}; it needs one, such as {model}.safetensors."
        )
    return str((exact or files)[0])


def _enter(here: list[Line], rows: Sequence[Row], comparable: bool) -> None:
    """Put what was measured into the lines, and controls behind them."""
    measured = {_key(row): row for row in rows}
    for line in here:
        row = measured.pop(line.key, None)
        if row is None:  # a method that cannot run has no layers
            row = measured.pop((line.method, "", None), None)
        if row is not None:
            line.measure(row, comparable)
    for row in measured.values():
        if row.control:
            line = Line(here[0].table, here[0].model, row.method, row.stages, control=True)
            line.measure(row, comparable)
            here.append(line)


def _key(row: Row) -> tuple[str, str, int | None]:
    stages = "" if row.method == BASELINE else row.stages
    return row.method, stages, _k(row)


def _k(row: Row) -> int | None:
    """The paper's k of a row that was run at it."""
    fixed = row.budget is None and row.method != BASELINE and not row.control
    return int(row.knob) if fixed and row.knob.isdigit() else None
