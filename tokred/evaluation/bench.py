"""Benchmarks of reduced models at several batch sizes, with the results as CSV and as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from tokred.core.costs import CostTable
from tokred.core.options import changed_options, options_text
from tokred.errors import TokredError
from tokred.evaluation import builder, candidates
from tokred.evaluation.candidates import Candidate
from tokred.evaluation.config import Config
from tokred.evaluation.speed import Speed, measure
from tokred.evaluation.timing import check_rounds
from tokred.models import zoo
from tokred.models.tensor_files import hash_weights
from tokred.tables.render import Table
from tokred.tables.row import BASELINE
from tokred.utils import numbers
from tokred.utils.atomic import replace_file
from tokred.utils.devices import default_batch_size, resolve_device, resolve_precision
from tokred.utils.provenance import versions
from tokred.utils.text import plain_name

Record = dict[str, Any]
"""One row of a benchmark, one method at one batch size, by `COLUMNS`; `Row` and `Speed` explain these."""

_TEXTS = ("options", "stages", "tokens", "precision", "device", "error", "schedule")
_VERSIONS = ("tokred", "torch", "timm", "fvcore", "commit", "date")
COLUMNS = (
    *("method", "model", "batch_size", "budget", "reduction", "gflops", "options", "stages", "tokens"),
    *(field.name for field in fields(Speed)),
    *("unfitted", "compiled", "precision", "device", "threads", "rounds", "error", *_VERSIONS),
    "schedule",
)


class Bench:
    """A benchmark with checked input and models. It needs no data and no fitted parameters.

    Args:
        config: the configuration of a comparison. Used are its model, budgets, methods, options, protocol,
            stages, schedule, img_size, controls, device and precision.
        batch_sizes: numbers of images in a forward pass; by default 16 on a CPU and 256 elsewhere.
        rounds: number of times each model is timed at each batch size.
        compiled: whether to run every model through `torch.compile`.

    Raises:
        TokredError: a value is invalid, or no method can run.
    """

    def __init__(
        self, config: Config, batch_sizes: tuple[int, ...] = (), rounds: int = 15, compiled: bool = False
    ) -> None:
        check_rounds(rounds)
        for size in batch_sizes:
            if not 1 <= size <= numbers.MOST_IMAGES_TOGETHER:
                most = f"{numbers.MOST_IMAGES_TOGETHER:,}"
                raise TokredError(
                    f"--batch-size takes numbers of images, from 1 to {most}, such as 1,16,128; got {size}."
                )
        self.config, self.rounds, self.compiled = config, rounds, compiled
        self.device = resolve_device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self.batch_sizes = tuple(dict.fromkeys(batch_sizes)) or (default_batch_size(self.device),)
        loaded = _loaded(config.model, config.img_size)
        self.dense, self.costs = loaded.model, CostTable(loaded.model)
        config = replace(config, allow_unfitted=True)  # time does not depend on the parameters
        built = builder.build(config, loaded, self.costs)
        self.candidates = {candidate.name: candidate for candidate in built}
        self.models = {one.name: one.model for one in built if one.model is not None}

    @property
    def title(self) -> str:
        """The title of the table."""
        parts = [f"{100 * budget:g} % of FLOPs to save" for budget in self.config.budgets]
        parts += [] if self.config.counts.uniform else [f"{self.config.counts.name} schedule"]
        number = str(self.dtype).removeprefix("torch.")
        return ", ".join((self.config.model, *parts, str(self.device), number))

    @property
    def file_name(self) -> str:
        """The name of the CSV file, unless the user gives one."""
        config = self.config
        size = [f"{config.img_size}px"] if config.img_size else []
        parts = ["bench", plain_name(config.model), *size, *(f"{budget:g}" for budget in config.budgets)]
        parts += [] if config.counts.uniform else [plain_name(config.counts.name)]
        parts += [*map(str, self.batch_sizes), *(["compile"] if self.compiled else [])]
        return f"{'-'.join(parts)}.csv"

    def run(
        self, out: Path | None = None, progress: Callable[[int], None] = lambda rounds: None
    ) -> list[Record]:
        """Time all models at every batch size.

        Args:
            out: CSV file, rewritten after each batch size; None for no file.
            progress: function called with 1 after every round.
        """
        rows: list[Record] = []
        reductions = candidates.reductions(self.candidates.values(), self.costs)
        refused = {name: str(one.refused) for name, one in self.candidates.items() if one.refused}
        for size in self.batch_sizes:
            failed = dict(refused)
            speeds = measure(
                self.models,
                self.dense,
                size,
                reductions,
                rounds=self.rounds,
                device=self.device,
                dtype=self.dtype,
                compiled=self.compiled,
                failed=failed,
                progress=progress,
            )
            rows += [self._row(name, size, speed) for name, speed in speeds.items()]
            rows += [record(name, self.config.model, size, error=error) for name, error in failed.items()]
            if out is not None:
                replace_file(out, to_csv(rows).encode(), "choose another file with --out")
        return rows

    def _row(self, name: str, batch_size: int, speed: Speed) -> Record:
        candidate = self.candidates.get(name)
        row = candidate.row(self.costs) if candidate else candidates.baseline_row(self.costs)
        return record(
            name,
            self.config.model,
            batch_size,
            budget=row.budget,
            reduction=row.reduction if candidate else None,
            gflops=row.gflops,
            options=_options(candidate),
            stages=row.stages,
            tokens=row.tokens if row.stages else "",
            schedule=row.schedule,
            unfitted=row.unfitted,
            compiled=self.compiled,
            precision=str(self.dtype).removeprefix("torch."),
            device=_device_name(self.device),
            threads=torch.get_num_threads(),
            rounds=self.rounds,
            **asdict(speed),
            **versions(),
        )


def record(method: str, model: str, batch_size: int, **values: Any) -> Record:
    """A row with empty cells for columns without a value."""
    empty = dict.fromkeys(COLUMNS) | dict.fromkeys((*_TEXTS, *_VERSIONS), "")
    key = {"method": method, "model": model, "batch_size": batch_size}
    return {**empty, "unfitted": False, "compiled": False, **key, **values}


def _options(candidate: Candidate | None) -> str:
    """The options that differ from the defaults, as tables show them."""
    if candidate is None:
        return ""
    if candidate.match is None:
        return options_text(candidate.options)
    return options_text(changed_options(candidate.match.plan.reducer, candidate.match.plan.options))


def _loaded(name: str, img_size: int | None = None) -> zoo.Loaded:
    """The model with shipped weights if there are any, else with random ones; the speed is the same."""
    try:
        return zoo.load_shipped(name, img_size)
    except TokredError:
        model = zoo.build(name, img_size=img_size)
        return zoo.Loaded(model, name, "random", hash_weights(model))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def to_csv(rows: Sequence[Record]) -> str:
    """The rows as CSV, with an empty cell for what was not measured."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(COLUMNS), dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def table(rows: Sequence[Record], title: str) -> Table:
    """The rows as a table of 80 characters; the CSV has quartiles too."""
    return Table(
        title=title,
        headers=(
            *("Method", "Batch", "Images/s", "Latency (ms)"),
            *("Speed-up [95 % interval]", "Efficiency", "Peak (MB)"),
        ),
        rows=[[row["method"], str(row["batch_size"]), *_figures(row)] for row in rows],
        row_notes={place: [note] for place, row in enumerate(rows) if (note := _note(row))},
        styles=["red" if row["error"] else "" for row in rows],
    )


def _note(row: Record) -> str:
    unfitted = "Unfitted parameters; the speed does not depend on them." if row["unfitted"] else ""
    return row["error"] or unfitted


def _figures(row: Record) -> list[str]:
    """The cells of measured values; the dense model has no speed-up."""
    if row["speedup"] is None:
        return [""] * 5
    patterns = (
        *("{images_per_s:.1f}", "{latency_ms:.1f}"),
        "" if row["method"] == BASELINE else "{speedup:.3f} [{speedup_lo:.3f}, {speedup_hi:.3f}]",
        "" if row["method"] == BASELINE else "{promise_share:.1%}",
        "" if row["peak_mem_mb"] is None else "{peak_mem_mb:.1f}",
    )
    return [pattern.format(**row) for pattern in patterns]
