"""The data of a report: the rows, predictions and maps of a finished run."""

from __future__ import annotations

import numpy as np

from tokred.evaluation.run_folder import Run
from tokred.tables.row import BASELINE, Row


class RunData(Run):
    """A finished run, with what the sections of a report need from it."""

    @property
    def baseline(self) -> Row | None:
        """The dense model's row."""
        return next((row for row in self.rows if row.method == BASELINE), None)

    @property
    def budgets(self) -> list[float]:
        """The budgets of the rows, ascending."""
        return sorted({row.budget for row in self.rows if row.budget is not None})

    @property
    def ordered(self) -> list[Row]:
        """The rows in the order of the page: the baseline, then by budget, then as in the leaderboard."""
        return sorted(
            self.rows, key=lambda row: (row.method != BASELINE, row.budget is None, row.budget or 0.0)
        )

    def predicted(self, name: str | None) -> np.ndarray | None:
        """[n] the class that a model predicts for each image, -1 for unreadable ones; None if unknown."""
        model = self.predictions.models.get(name or "") if self.predictions else None
        return None if model is None else model.prediction

    def class_name(self, label: int) -> str:
        """The name of a class, or its number if names are unknown; "" for a negative one."""
        names = self.about.get("class_names")
        if label < 0:
            return ""
        return str(names[label]) if isinstance(names, list) and label < len(names) else str(label)

    def called(self, row: Row) -> str:
        """The method of a row, with its setting and layers if other rows have the same method."""
        same = [other for other in self.rows if other.method == row.method]
        alike = [other for other in same if setting(other) == setting(row)]
        layers = f", layers {row.stages}" if len(alike) > 1 else ""
        return row.method if len(same) == 1 else f"{row.method}, {setting(row)}{layers}"


def setting(row: Row) -> str:
    """A row's budget or, without one, its knob."""
    if row.budget is not None:
        return f"{100 * row.budget:.12g} %"
    return f"knob {row.knob}" if row.knob else "own plan"
