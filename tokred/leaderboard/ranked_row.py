"""Rows of a board with their identity, evidence and exclusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokred.errors import TokredError
from tokred.evaluation.run_folder import Run, read_run
from tokred.leaderboard.evidence import PREDICTIONS, Evidence, claims, evidence_of
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.exclusions import exclusions
from tokred.tables.row import Row, csv_cell, from_csv
from tokred.utils.files import read_bytes

CSV_NAME = "leaderboard.csv"

QUESTION = (
    *("method", "options", "model", "weights_hash", "data_hash", "split", "n_images", "limited", "budget"),
    *("knob", "protocol", "stages", "img_size", "crop_pct", "interpolation", "precision", "device"),
    *("batch_size", "seed", "on_error"),
)
"""The columns that define an experiment: the method, its weights and images, the budget and settings.

Some columns count in part. Without a `weights_hash` or `data_hash` the name in `weights` or `dataset` is used
instead. `stages` count if they were chosen (protocol "custom"); otherwise they follow from method and
protocol. A schedule counts with the protocol, `knob` without a budget, and `device` without its number."""

IDENTITY = (*QUESTION, "training", "adapter", "unfitted")
"""The columns that define a row: the experiment, and the fitted parameters in it.

They do not include scores, times and errors, which are results; `tokens` and FLOPs, which follow from budget
or knob; or versions, commit and date, which differ if a result is measured again."""


def identity(row: Row, columns: Sequence[str] = IDENTITY) -> tuple[str, ...]:
    """The values that identify a row, as text; see `QUESTION` and `IDENTITY`."""
    values = vars(row) | {
        "weights_hash": row.weights_hash or row.weights,
        "data_hash": row.data_hash or row.dataset,
        "knob": row.knob if row.budget is None else "",
        "protocol": f"{row.protocol} {row.schedule}".strip(),
        "stages": row.stages if row.protocol == "custom" else "",
        "device": row.device.partition(":")[0],
    }
    return tuple(csv_cell(values[name]) for name in columns)


@dataclass(eq=False)
class RankedRow:
    """A row of a board with its evidence and its rank.

    Attributes:
        row: the row.
        evidence: the predictions behind it; None if the board does not have them.
        disputed: how it contradicts its predictions; empty if it does not.
        exclusions: the reasons not to rank it, most important first.
        rank: 1 for the best; None if it is not ranked.
        unpaired: whether it was compared by intervals alone, for lack of evidence.
        unbeaten: the controls that it is not significantly better than.
        better_top1: the rows of its group than which it is significantly better by top-1.
        better_nll: those than which it is by negative log-likelihood.
    """

    row: Row
    evidence: Evidence | None = None
    disputed: str = ""
    exclusions: list[str] = field(init=False)
    rank: int | None = None
    unpaired: bool = False
    unbeaten: list[str] = field(default_factory=list)
    better_top1: list[RankedRow] = field(default_factory=list)
    better_nll: list[RankedRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.exclusions = [*filter(None, [self.disputed]), *exclusions(self.row)]
        if self.verified and not self.verified.get("confirmed"):
            date = self.verified.get("date", "another day")
            self.exclusions.insert(0, f"not confirmed when it was run again on {date}")

    @property
    def verified(self) -> dict[str, Any] | None:
        """The result of the latest verification."""
        return self.evidence.verified if self.evidence else None

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The row's `identity`."""
        return identity(self.row)

    @property
    def top1(self) -> float:
        """Top-1, or 0 if it is missing."""
        top1 = self.row.top1
        return top1 if top1 is not None and math.isfinite(top1) else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of top-1, or top-1 twice if it is missing."""
        low, high = self.row.top1_lo, self.row.top1_hi
        return (self.top1, self.top1) if low is None or high is None else (low, high)


def read(path: Path) -> list[Row]:
    """Read the rows of a leaderboard file.

    Raises:
        TokredError: it cannot be read, is not a leaderboard, or was written by a newer tokred.
    """
    try:
        return from_csv(read_bytes(path).decode(), str(path))
    except OSError as error:
        raise TokredError(f"The leaderboard {path} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise TokredError(f"{path} is not a leaderboard of tokred, or is damaged ({error}).") from error


def run_of(path: Path) -> Run | None:
    """The run of a leaderboard.csv, if it has predictions; None for any other CSV. See `read_run`."""
    has_predictions = path.name == CSV_NAME and (path.parent / PREDICTIONS).is_file()
    return read_run(path.parent) if has_predictions else None


def load(path: Path, run: Run | None) -> list[RankedRow]:
    """Read the rows of a board or run with their evidence, see `read`; the caller holds a board's lock."""
    store = Store(path)
    return [_with_evidence(row, store, run) for row in read(path)]


def _with_evidence(row: Row, store: Store, run: Run | None) -> RankedRow:
    evidence = store.get(identity(row), row)
    wrong = evidence.contradicts(row) if evidence else []
    if run is not None and (evidence is None or wrong):
        evidence, wrong = evidence_of(run, row), claims(run, row)
        evidence = replace(evidence, disputed=tuple(wrong)) if evidence else None
    disputed = f"contradicts its predictions: {', '.join(wrong)}" if wrong and row.status == "ok" else ""
    return RankedRow(row, evidence, disputed)
