"""`bench`: how much of the FLOPs that methods save becomes time, at several batch sizes, as CSV and as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokred.core.flops import CostTable
from tokred.core.options import changed_options, options_text
from tokred.errors import TokredError
from tokred.evaluation import candidates
from tokred.evaluation.candidates import Candidate
from tokred.evaluation.config import Config
from tokred.evaluation.speed import DENSE, Speed, measure
from tokred.models import zoo
from tokred.models.tensor_files import hash_weights
from tokred.utils.atomic import replace_file
from tokred.utils.devices import resolve_device, resolve_precision
from tokred.utils.provenance import versions

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class BenchRow:
    """One line of a benchmark, one method at one batch size; `Speed` says what the figures mean."""

    method: str
    model: str
    batch_size: int
    budget: float | None = None
    reduction: float | None = None
    gflops: float | None = None
    options: str = ""
    stages: str = ""
    tokens: str = ""
    images_per_s: float | None = None
    latency_ms: float | None = None
    latency_q1_ms: float | None = None
    latency_q3_ms: float | None = None
    speedup: float | None = None
    speedup_lo: float | None = None
    speedup_hi: float | None = None
    promise: float | None = None
    promise_share: float | None = None
    peak_mem_mb: float | None = None
    unfitted: bool = False
    compiled: bool = False
    precision: str = ""
    device: str = ""
    threads: int | None = None
    rounds: int | None = None
    error: str = ""
    tokred: str = ""
    torch: str = ""
    timm: str = ""
    fvcore: str = ""
    commit: str = ""
    date: str = ""


class Bench:
    """A benchmark whose input has been checked and whose models are made. Needs no data and no fitted parameters.

    Args:
        config: as for a comparison; model, budget, methods, options, protocol, stages, device and precision count.
        batch_sizes: by default 16 on a CPU, 256 elsewhere.
        rounds: how often each model is timed at each batch size.
        compiled: run everything through `torch.compile`.

    Raises:
        TokredError: anything wrong with that.
    """

    def __init__(
        self, config: Config, batch_sizes: tuple[int, ...] = (), rounds: int = 15, compiled: bool = False
    ) -> None:
        if rounds < 1:
            raise TokredError(
                f"--rounds is how often each model is timed and must be at least 1, got {rounds}."
            )
        for size in batch_sizes:
            if size < 1:
                raise TokredError(
                    f"--batch-size takes numbers of images, at least 1 each, such as 1,16,128; got {size}."
                )
        self.config, self.rounds, self.compiled = config, rounds, compiled
        self.device = resolve_device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self.batch_sizes = tuple(dict.fromkeys(batch_sizes)) or (16 if self.device.type == "cpu" else 256,)
        loaded = _loaded(config.model, config.img_size)
        self.dense, self.costs = loaded.model, CostTable(loaded.model)
        config = replace(config, allow_unfitted=True)  # time does not depend on the parameters
        self.candidates = {
            candidate.name: candidate for candidate in candidates.build(config, loaded, self.costs)
        }
        self.models = {
            name: candidate.model
            for name, candidate in self.candidates.items()
            if candidate.model is not None
        }

    def run(
        self, out: Path | None = None, progress: Callable[[int], None] = lambda rounds: None
    ) -> list[BenchRow]:
        """Measure every batch size; the CSV at `out` is written anew, in one step, after each."""
        rows: list[BenchRow] = []
        for size in self.batch_sizes:
            failed = {
                name: str(candidate.refused)
                for name, candidate in self.candidates.items()
                if candidate.refused
            }
            saved = {name: candidate.reduction(self.costs) for name, candidate in self.candidates.items()}
            reductions = {name: reduction for name, reduction in saved.items() if reduction is not None}
            speeds = measure(
                self.models, self.dense, size, rounds=self.rounds, device=self.device, dtype=self.dtype, compiled=self.compiled,
                reductions=reductions, failed=failed, progress=progress,
            )  # fmt: skip
            rows += [self._row(name, size, speed) for name, speed in speeds.items()]
            rows += [BenchRow(name, self.config.model, size, error=error) for name, error in failed.items()]
            if out is not None:
                write_csv(out, rows)
        return rows

    def _row(self, name: str, batch_size: int, speed: Speed) -> BenchRow:
        candidate = self.candidates.get(name)
        facts = candidate.facts(self.costs) if candidate else candidates.baseline_facts(self.costs)
        return BenchRow(
            method=name,
            model=self.config.model,
            batch_size=batch_size,
            budget=facts.budget,
            reduction=facts.reduction if candidate else None,
            gflops=facts.gflops,
            options=_options(candidate),
            stages=facts.stages,
            tokens=facts.tokens if facts.stages else "",
            unfitted=facts.unfitted,
            compiled=self.compiled,
            precision=str(self.dtype).removeprefix("torch."),
            device=_device_name(self.device),
            threads=torch.get_num_threads(),
            rounds=self.rounds,
            **asdict(speed),
            **versions(),
        )


def _options(candidate: Candidate | None) -> str:
    """The options that are not the default, as tables show them."""
    if candidate is None:
        return ""
    if candidate.match is None:
        return options_text(candidate.options)
    return options_text(changed_options(candidate.match.plan.reducer, candidate.match.plan.options))


def _loaded(name: str, img_size: int | None = None) -> zoo.Loaded:
    """The model with the weights that tokred ships, or with random ones, which take the same time."""
    try:
        return zoo.load_shipped(name, img_size)
    except TokredError:
        model = zoo.build(name, img_size=img_size)
        return zoo.Loaded(model, name, "random", hash_weights(model))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def write_csv(path: Path, rows: list[BenchRow]) -> None:
    """Write rows as CSV in one step: a reader sees the old file or the new one.

    Raises:
        TokredError: the file cannot be written.
    """
    import pandas as pd

    columns = [field.name for field in fields(BenchRow)]
    text = pd.DataFrame([asdict(row) for row in rows], columns=columns, dtype=object).to_csv(
        index=False, lineterminator="\n"
    )
    replace_file(path, text.encode(), "choose another file with --out")


def table(rows: list[BenchRow], title: str) -> Table:
    """The rows for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left", header_style="bold")
    headers = (
        "Batch",
        "Method",
        "Images/s",
        "Latency (ms)",
        "Quartiles",
        "Speed-up",
        "95 % interval",
        "Of promise",
        "Peak (MB)",
        "Note",
    )
    for header in headers:
        made.add_column(header, justify="left" if header in ("Method", "Note") else "right", overflow="fold")
    for row in rows:
        note = row.error or ("unfitted parameters, which take the same time" if row.unfitted else "")
        cells = ["", "", "", "", "", "", ""]
        if row.speedup is not None and row.latency_ms is not None:
            reduced = row.method != DENSE
            cells = [
                f"{row.images_per_s:.1f}", f"{row.latency_ms:.1f}", f"{row.latency_q1_ms:.1f} to {row.latency_q3_ms:.1f}",
                f"{row.speedup:.3f}" if reduced else "", f"{row.speedup_lo:.3f} to {row.speedup_hi:.3f}" if reduced else "",
                f"{row.promise_share:.1%}" if reduced else "", "" if row.peak_mem_mb is None else f"{row.peak_mem_mb:.1f}",
            ]  # fmt: skip
        made.add_row(str(row.batch_size), row.method, *cells, escape(note), style="red" if row.error else "")
    return made
