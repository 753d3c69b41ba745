"""The paper's Fig. 3, measured: methods on DeiT-S over budgets. The paper prints it as a picture; numbers are in its Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokred import plots
from tokred.evaluation import published_accuracy
from tokred.evaluation.comparison import Comparison, Job
from tokred.evaluation.config import Config
from tokred.plots import pareto
from tokred.report import outputs
from tokred.studies.lotm_paper import printed
from tokred.tables.row import BASELINE
from tokred.utils.atomic import write_all

MODEL = "deit_s"
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5)


class Fig3:
    """A sweep over the methods of Table 2, with the speed of each model.

    Args:
        config: data, weights and how to run; model, methods and budgets are the figure's.

    Raises:
        TokredError: see `Job`.
    """

    def __init__(self, config: Config) -> None:
        methods = tuple(line.method for line in printed.lines(2) if line.method != BASELINE)
        self.job = Job(replace(config, model=MODEL, methods=methods, budgets=BUDGETS), outputs=outputs.files)

    @property
    def comparable(self) -> bool:
        """Whether the images are the paper's."""
        return published_accuracy.is_imagenet(self.job.source)

    @property
    def title(self) -> str:
        """It cannot be mistaken for the paper's own."""
        where = f"{self.job.source.name} {self.job.source.split}, {len(self.job.source)} images"
        return (
            f"Fig. 3: methods on DeiT-S. On {where}"
            if self.comparable
            else f"Fig. 3, on {where}, NOT on ImageNet-1K"
        )

    def run(self, out: Path, workers: int | None, progress: Callable[[int], None], bench: int) -> Comparison:
        """Measure, and write, in the first process, the figure over FLOPs and, where there are rounds of timing, over speed.

        Raises:
            TokredError, Interrupted: as `Job.run`.
        """
        found = self.job.run(workers, progress, bench)
        if self.job.processes.rank:
            return found
        dots = [
            (line.gflops, line.top1)
            for table in (1, 2)
            for line in printed.lines(table)
            if line.model == MODEL
        ]
        drawn = {
            "fig3-flops": pareto.pareto(found.rows, "gflops", self.title, dots if self.comparable else ())
        }
        if any(row.images_per_s for row in found.rows):
            drawn["fig3-speed"] = pareto.pareto(found.rows, "images_per_s", self.title)
        files = {f"{name}.svg": plots.svg(figure).encode() for name, figure in drawn.items()}
        files |= {f"{name}.png": plots.png(figure) for name, figure in drawn.items()}
        write_all(out, files)
        return found
