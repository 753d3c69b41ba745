"""What a report is made of: the files of a finished run, read back."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokred.errors import TokredError
from tokred.tables import row as results
from tokred.tables.row import BASELINE, Row


@dataclass(frozen=True)
class Material:
    """A finished run.

    Attributes:
        rows: of its leaderboard, in its order.
        run: what its run.json says.
        predictions: arrays of predictions.npz: "labels" and "groups" [n], and "NAME/prediction" [n] for each outcome; may be empty.
        maps: arrays of maps.npz; empty where there is none.
    """

    rows: list[Row]
    run: Mapping[str, Any]
    predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def baseline(self) -> Row | None:
        """The unreduced model's row."""
        return next((row for row in self.rows if row.method == BASELINE), None)

    @property
    def budgets(self) -> list[float]:
        """That there are rows at, ascending."""
        return sorted({row.budget for row in self.rows if row.budget is not None})

    @property
    def ordered(self) -> list[Row]:
        """The rows as the page shows them: the unreduced model's, then budget by budget, within one as the leaderboard has them."""
        return sorted(
            self.rows, key=lambda row: (row.method != BASELINE, row.budget is None, row.budget or 0.0)
        )

    def outcome(self, row: Row) -> str:
        """The name of a row's outcomes in predictions.npz; "" where they are not there."""
        return results.outcome_name(self.predictions, row.method, row.budget, row.knob, row.stages) or ""

    def prediction(self, row: Row) -> np.ndarray | None:
        """[n] what the row's model takes each image for, -1 where that is unknown; None where the files do not say."""
        return self.predictions.get(f"{self.outcome(row)}/prediction")

    def class_name(self, label: int) -> str:
        """What the data set calls a class, where it says so, else its number; "" for none."""
        names = self.run.get("class_names")
        known = isinstance(names, list) and label < len(names)
        return "" if label < 0 else str(names[label]) if known else str(label)  # type: ignore[index]

    def called(self, row: Row) -> str:
        """The row's method, with what tells it from the other rows of that method."""
        same = [other for other in self.rows if other.method == row.method]
        layers = f", layers {row.stages}" if sum(setting(other) == setting(row) for other in same) > 1 else ""
        return row.method if len(same) == 1 else f"{row.method}, {setting(row)}{layers}"


def setting(row: Row) -> str:
    """The budget of a row, or what else it was given in place of one."""
    return (
        f"{100 * row.budget:.12g} %"
        if row.budget is not None
        else f"knob {row.knob}"
        if row.knob
        else "own plan"
    )


def of_files(
    leaderboard: str, run: Mapping[str, Any], predictions: bytes | None = None, maps: bytes | None = None
) -> Material:
    """The material in the contents of a run's files.

    Raises:
        TokredError: one of them is not what its name says.
    """
    return Material(
        results.from_csv(leaderboard, "leaderboard.csv"),
        run,
        _arrays(predictions, "predictions.npz"),
        _arrays(maps, "maps.npz"),
    )


def of_folder(folder: Path) -> Material:
    """The material in a run's folder; predictions.npz and maps.npz may be missing.

    Raises:
        TokredError: the folder is none of a finished run, or one of its files cannot be read.
    """
    if not folder.is_dir():
        raise TokredError(f"There is no folder {folder}; give the folder of a run, such as one under runs/.")
    for name in ("run.json", "leaderboard.csv"):
        if not (folder / name).is_file():
            unfinished = name != "run.json"
            why = (
                "its run has not come to its end; go on with its command first"
                if unfinished
                else "give the folder of a finished run"
            )
            raise TokredError(f"{folder} holds no {name}: {why}.")
    contents = {
        name: _bytes(folder / name) for name in ("leaderboard.csv", "run.json", "predictions.npz", "maps.npz")
    }
    try:
        run = json.loads(contents["run.json"] or b"")
        table = (contents["leaderboard.csv"] or b"").decode("utf-8-sig")  # spreadsheets write the mark
    except ValueError as error:
        raise TokredError(
            f"{folder} is no folder of a run: run.json or leaderboard.csv is damaged ({error})."
        ) from error
    if not isinstance(run, dict) or not isinstance(run.get("configuration"), dict):
        raise TokredError(f"{folder / 'run.json'} is not a run of tokred; give the folder of a finished run.")
    try:
        return of_files(table, run, contents["predictions.npz"], contents["maps.npz"])
    except TokredError as error:
        raise TokredError(f"{folder} cannot be reported: {error}") from error


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise TokredError(f"{path} cannot be read ({error.strerror or error}).") from error


def _arrays(data: bytes | None, name: str) -> dict[str, np.ndarray]:
    if data is None:
        return {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise TokredError(
            f"{name} is damaged; remove it to have a report without it, or run the comparison again."
        ) from error
