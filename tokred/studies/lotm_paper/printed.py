"""What the reference paper prints: the figures of its Tables 1 to 4, and where they contradict themselves."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

LAYER_SETS = ((4, 7, 10), (4, 7, 11))
"""Where LoTM reduces: the layers that the FLOPs of DeiT-T's Table 1 fit, and those that the text names."""

BUDGET = 0.3
"""The reduction of Tables 2 to 4."""

MODELS = {1: ("deit_t", "deit_s", "deit_b"), 2: ("deit_s",), 3: ("deit_b",), 4: ("deit_t",)}
"""The models of each table."""

TITLES = {
    1: "Table 1: LoTM at different k",
    2: "Table 2: methods on DeiT-S, 30 % fewer FLOPs",
    3: "Table 3: methods on DeiT-B, 30 % fewer FLOPs",
    4: "Table 4: methods on DeiT-T, 30 % fewer FLOPs",
}

NOTES = {
    1: (
        "The text names layers 4, 7, 11. DeiT-T's printed FLOPs fit layers 4, 7, 10 within 0.01 G; DeiT-S' fit neither set at every k.",
        "DeiT-B's printed FLOPs fall by 1.06 G with every 10 tokens but at k = 40, where 13.97 stands and 13.37 would follow: a misprint?",
        "The printed baselines of DeiT-S and DeiT-B, 4.65 and 17.60 G, are above what a trace of these models counts, 4.61 and 17.58.",
        "No k above 49 can be had from 196 tokens in three stages: at 50, the third finds 48 pairs.",
    ),
    2: (
        "Printed drops that are not the difference of the printed accuracies: Sinkhorn 14.8 (15.80), PatchMerger 3.0 (4.02), "
        "DPC-KNN 0.95 (0.97), K-Medoids 1.06 (1.08), ToMe 0.17 (0.19). The column here has the differences.",
    ),
    3: (
        "The printed 12.34 G of LoTM belong to k = 48 in Table 1. With layers 4, 7, 11 a trace counts 11.83 G there, and 12.31 at k = 44.",
    ),
    4: (),
}
"""Known misprints and contradictions, by table."""

COMMON_NOTES = (
    "Printed ToMe is cited from its paper, trained with the reduction for 300 epochs; measured ToMe is as the column of training says. "
    "How the other printed methods were trained is not stated.",
)
"""What holds for Tables 2 to 4 alike."""


@dataclass(frozen=True)
class Printed:
    """One printed line: accuracy and drop in per cent, FLOPs in 10^9 multiply-accumulates.

    Attributes:
        k: tokens that LoTM removes at each of its three stages; None for other methods. In Tables 3 and 4 it is Table 1's for these FLOPs.
        drop: as printed, which is not always the difference of the accuracies.
    """

    table: int
    model: str
    method: str
    k: int | None
    top1: float
    drop: float | None
    gflops: float


def lines(table: int) -> list[Printed]:
    """The lines of a table, in their order."""
    with (Path(__file__).parent / "printed.csv").open(encoding="utf-8", newline="") as file:
        found = [_line(row) for row in csv.DictReader(file)]
    return [line for line in found if line.table == table]


def baseline(table: int, model: str) -> Printed:
    """A table's line about the unreduced model."""
    return next(line for line in lines(table) if line.model == model and line.method == "baseline")


def _line(row: dict[str, str]) -> Printed:
    return Printed(
        int(row["table"]),
        row["model"],
        row["method"],
        int(row["k"]) if row["k"] else None,
        float(row["top1"]),
        float(row["drop"]) if row["drop"] else None,
        float(row["gflops"]),
    )
