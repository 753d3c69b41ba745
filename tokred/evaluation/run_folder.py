"""Reading the folder of a run: rows, predictions and run.json, each checked."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokred.errors import TokredError
from tokred.evaluation.predictions import Predictions, RunPredictions
from tokred.tables.row import Row, from_csv, outcome_name
from tokred.utils.files import read_bytes, read_text

FILES = (
    "leaderboard.csv",
    "predictions.npz",
    "table.md",
    "table.tex",
    "pareto.svg",
    "pareto.png",
    "report.html",
    "run.json",
)
OPTIONAL = ("maps.npz", "config.yaml")  # a run is complete without them


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        rows: rows of leaderboard.csv, in its order.
        about: contents of run.json: configuration, software, versions, errors and so on.
        predictions: contents of predictions.npz; None if the file is missing.
        maps: arrays of maps.npz; empty if the file is missing or was not read.
        path: the folder.
    """

    rows: list[Row]
    about: Mapping[str, Any]
    predictions: RunPredictions | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    path: Path = Path()

    def name(self, row: Row) -> str | None:
        """The name under which a row's predictions are stored; None if they are not."""
        return outcome_name(self.predictions.models if self.predictions else (), row)

    def of(self, row: Row) -> Predictions | None:
        """The predictions of a row's model; None if they are not stored."""
        name = self.name(row)
        return self.predictions.models[name] if self.predictions and name is not None else None


def read_run(path: Path, with_maps: bool = False) -> Run:
    """Read a finished run from its folder, and check every file; predictions and maps may be missing.

    Raises:
        TokredError: the folder does not contain a finished run, or one of its files is damaged.
    """
    if not path.is_dir():
        raise TokredError(f"There is no folder {path}; give the folder of a run, such as one under runs/.")
    if not (path / "run.json").is_file():
        raise TokredError(f"{path} contains no run.json; give the folder of a finished run.")
    about = read_about(path / "run.json", "give the folder of a finished run")
    leaderboard, predictions = _bytes(path / "leaderboard.csv"), _bytes(path / "predictions.npz")
    if leaderboard is None:
        raise TokredError(
            f"{path} contains no leaderboard.csv: the run is unfinished; resume it with its command first."
        )
    try:
        rows = from_csv(leaderboard.decode(), str(path / "leaderboard.csv"))
    except ValueError as error:
        raise TokredError(f"{path / 'leaderboard.csv'} cannot be read: it is not text.") from error
    try:
        stored = None if predictions is None else RunPredictions.unpack(predictions)
    except ValueError as error:
        raise _damaged(path / "predictions.npz") from error
    return Run(rows, about, stored, _maps(path / "maps.npz") if with_maps else {}, path)


def _maps(path: Path) -> dict[str, np.ndarray]:
    data = _bytes(path)
    if data is None:
        return {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(path) from error


def _damaged(path: Path) -> TokredError:
    return TokredError(f"{path} is damaged; remove it to continue without it, or run the comparison again.")


def read_about(file: Path, advice: str) -> dict[str, Any]:
    """Read a run.json; an error ends with the advice."""
    try:
        run = json.loads(read_text(file))
        dict(run["configuration"]), dict(run.get("software", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokredError(f"{file} is not a run of tokred; {advice}.") from error
    return dict(run)


def _bytes(path: Path) -> bytes | None:
    """The contents of a file; None if it does not exist."""
    try:
        return read_bytes(path) if path.exists() else None
    except OSError as error:
        raise TokredError(f"{path} cannot be read ({error.strerror or error}).") from error
