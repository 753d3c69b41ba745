"""A table or figure of the paper, measured: a named configuration, comparisons, and the join."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokred import plots
from tokred.core.costs import CostTable
from tokred.core.match import at_knob, match_each
from tokred.errors import TokredError
from tokred.evaluation import published_accuracy
from tokred.evaluation.candidates import Candidate
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config
from tokred.evaluation.config_file import read_config
from tokred.models import zoo
from tokred.plots import pareto
from tokred.report import outputs
from tokred.studies.lotm_paper import printed
from tokred.studies.lotm_paper.join import Line, csv_text, join, table
from tokred.tables.render import Table
from tokred.tables.results_table import formatted
from tokred.tables.row import BASELINE, Row
from tokred.utils.atomic import check_writable, write_all

if TYPE_CHECKING:
    from rich.console import RenderableType

Rows = Mapping[str, Sequence[Row]]
"""Rows by model."""


class Study:
    """The measurement of one table or figure of the paper.

    Args:
        target: "table1" to "table4", or "fig3".
        config: data, weights and hardware; model, methods, budgets and stages are those of the target.
            `weights` may be a folder with a file for each model, named after it.
        models: some of the target's models, by default all.
        flops_only: whether to compare FLOPs alone, without data or weights.

    Attributes:
        jobs: comparisons by model.
        notes: sentences about models that cannot be measured.

    Raises:
        TokredError: the target does not have such a model, or the data cannot be used.
    """

    def __init__(
        self, target: str, config: Config, models: Sequence[str] = (), flops_only: bool = False
    ) -> None:
        self.target, self.plans = target, read_config(target)
        self.table = int(target[-1]) if target.startswith("table") else None
        known = (self.plans.model,) if self.table is None else printed.models(self.table)
        unknown = [model for model in models if model not in known]
        if unknown:
            name = printed.TITLES[target].partition(":")[0]
            raise TokredError(f"{name} has the models {', '.join(known)}, not {unknown[0]}.")
        self.models = tuple(models) or known
        self.jobs: dict[str, Job] = {}
        self.notes: list[str] = []
        for model in () if flops_only else self.models:
            try:
                self.jobs[model] = Job(self._config(config, model), outputs=outputs.files)
            except TokredError as error:
                if model == self.models[-1] and not self.jobs and (config.data or self.table is None):
                    raise  # only PhotoDigits is expected to lack weights for some models
                self.notes.append(f"{model} is not measured here: {error}")

    def _config(self, config: Config, model: str) -> Config:
        return replace(
            config,
            model=model,
            methods=self.plans.methods,
            budgets=self.plans.budgets,
            fixed=self.plans.fixed,
            weights=weights_of(model, config.weights, len(self.models)),
        )

    @property
    def comparable(self) -> bool:
        """Whether the images are the paper's: ImageNet-1K's validation images, or some of them."""
        sources = [job.source for job in self.jobs.values()]
        return bool(sources) and all(map(published_accuracy.is_imagenet, sources))

    @property
    def title(self) -> str:
        """The title, which says on which images was measured."""
        title = printed.TITLES[self.target]
        if not self.jobs:
            return f"{title}. FLOPs alone"
        source = next(iter(self.jobs.values())).source
        where = f"{source.name} {source.split}, {len(source)} images"
        if self.comparable:
            return f"{title}. On {where}"
        return f"{title}. Measured on {where}, NOT on ImageNet-1K"

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return all(job.processes.rank == 0 for job in self.jobs.values())

    @property
    def images(self) -> int:
        """Images to evaluate, over all models."""
        return sum(len(job.source) for job in self.jobs.values())

    @property
    def contents(self) -> str:
        """The contents of the output folder, in words."""
        if self.table is None:
            return "Figures and run"
        return "Tables and a run for each model" if self.jobs else "Tables"

    def describe(self) -> list[str]:
        """A line about the data, weights and precision of each comparison."""
        return [job.describe() for job in self.jobs.values()]

    def open(self, out: Path) -> list[str]:
        """Open the folders of the results, and return sentences about earlier runs in them.

        Raises:
            TokredError: a folder is not writable, or in use.
        """
        check_writable(out)
        folders = {model: out if self.table is None else out / model for model in self.jobs}
        return [notice for model, job in self.jobs.items() if (notice := job.open(folders[model]))]

    def run(
        self,
        workers: int | None = None,
        progress: Callable[[int], None] = lambda images: None,
        bench: int = 0,
    ) -> Rows:
        """Measure all models; of those that cannot be measured, count the FLOPs.

        In a distributed run only the first process has rows. `bench` is the number of rounds in which each
        model is timed.

        Raises:
            TokredError, Interrupted: as `Job.run`.
        """
        return {
            model: self.jobs[model].run(workers, progress, bench).rows
            if model in self.jobs
            else planned(self.plans, CostTable(zoo.build(model)))
            for model in self.models
        }

    def lines(self, rows: Rows) -> list[Line]:
        """The rows of all models joined with the printed rows of the table."""
        assert self.table is not None
        return [
            line for model in self.models for line in join(self.table, model, rows[model], self.comparable)
        ]

    def as_table(self, rows: Rows) -> Table:
        """The table of printed and measured values, with notes on misprints."""
        notes = [*self.notes, *printed.NOTES[self.target]]
        return table(self.lines(rows), self.title, notes, bool(self.jobs), self.comparable)

    def rendered(self, rows: Rows, form: str) -> str | RenderableType:
        """The table in one of `render.FORMATS`; for a figure, accuracy by method and budget."""
        if self.table is None:
            return formatted(next(iter(rows.values())), self.title, form, swept=True)
        return self.as_table(rows).render(form)

    def write(self, out: Path, rows: Rows) -> None:
        """Write the table as CSV, Markdown and LaTeX, or the figures; only the first process does."""
        if not self.first:
            return
        if self.table is None:
            write_all(out, self._figures(next(iter(rows.values()))))
            return
        drawing = self.as_table(rows)
        texts = {
            "csv": csv_text(self.lines(rows)),
            "md": str(drawing.render("markdown")),
            "tex": str(drawing.render("latex")),
        }
        write_all(out, {f"{self.target}.{ending}": text.encode() for ending, text in texts.items()})

    def _figures(self, rows: Sequence[Row]) -> dict[str, bytes]:
        """Fig. 3 over FLOPs, with the printed points if they are comparable, and over measured speed."""
        model = self.plans.model
        points = [(line.gflops, line.top1) for table in (1, 2) for line in printed.lines(table, model)]
        figures = {"fig3-flops": pareto.pareto(rows, "gflops", self.title, points if self.comparable else ())}
        if any(row.images_per_s for row in rows):
            figures["fig3-speed"] = pareto.pareto(rows, "images_per_s", self.title)
        return plots.files(figures)


def planned(config: Config, costs: CostTable) -> list[Row]:
    """The rows of the plans of a configuration, with FLOPs alone."""
    candidates = []
    for fixed in config.fixed:
        match = at_knob(costs, fixed.method, fixed.knob, stages=fixed.stages)
        candidates.append(Candidate(method=fixed.method, budget=None, name=fixed.name, match=match))
    for budget in config.budgets:
        matches, refused = match_each(costs, config.methods or (), budget)
        candidates += [
            Candidate(name, budget, name, match=matches.get(name), refused=refused.get(name))
            for name in config.methods or ()
        ]
    rows = (replace(candidate.row(costs), training="") for candidate in candidates)
    return [Row(BASELINE, gflops=costs.dense / 1e9), *rows]


def weights_of(model: str, weights: str | None, models: int = 1) -> str | None:
    """The weights of one of several models: the file in a folder that is named after it, or `weights` itself.

    Raises:
        TokredError: there is one file for several models, or the folder does not have exactly one file for
            this model.
    """
    if weights is None or not Path(weights).is_dir():
        if weights is not None and models > 1:
            raise TokredError(
                f"--weights {weights} is one file for {models} models; give a folder with a file for each, "
                "or choose one model with --models."
            )
        return weights
    names = (model, zoo.timm_name(model))
    files = sorted(
        path
        for path in Path(weights).iterdir()
        if path.suffix in (".safetensors", ".pth", ".bin") and path.stem.startswith(names)
    )
    files = [path for path in files if path.stem in names] or files
    if len(files) != 1:
        raise TokredError(
            f"{weights} has {len(files)} weight files for {model}; it needs one, such as {model}.safetensors."
        )
    return str(files[0])
