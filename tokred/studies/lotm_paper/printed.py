"""The values printed in the LoTM paper's Tables 1 to 4, with their misprints and contradictions."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

TITLES = {
    "table1": "Table 1: LoTM at different k",
    "table2": "Table 2: methods on DeiT-S, 30 % fewer FLOPs",
    "table3": "Table 3: methods on DeiT-B, 30 % fewer FLOPs",
    "table4": "Table 4: methods on DeiT-T, 30 % fewer FLOPs",
    "fig3": "Fig. 3: methods on DeiT-S",
}

_TRAINING = (
    "Printed ToMe is cited from its paper, trained with the reduction for 300 epochs; measured ToMe is "
    "trained as the Training column says. The paper does not state how the other methods were trained."
)
NOTES = {
    "table1": (
        "The text names layers 4, 7, 11. DeiT-T's printed FLOPs fit layers 4, 7, 10 within 0.01 G; DeiT-S' "
        "fit neither set at every k.",
        "DeiT-B's printed FLOPs fall by 1.06 G with every 10 tokens, except at k = 40: 13.97 is printed, "
        "but 13.37 expected, so this is probably a misprint.",
        "The printed baselines of DeiT-S and DeiT-B, 4.65 and 17.60 G, are above a trace of these models, "
        "4.61 and 17.58.",
        "With 196 tokens and three stages k can be at most 49: at 50, the third stage has only 48 pairs.",
    ),
    "table2": (
        "Some printed drops are not the difference of the printed accuracies: Sinkhorn 14.8 (15.80), "
        "PatchMerger 3.0 (4.02), DPC-KNN 0.95 (0.97), K-Medoids 1.06 (1.08), ToMe 0.17 (0.19). This table "
        "has the differences.",
        _TRAINING,
    ),
    "table3": (
        "The printed 12.34 G of LoTM belong to k = 48 in Table 1. With layers 4, 7, 11 a trace counts 11.83 "
        "G there, and 12.31 at k = 44.",
        _TRAINING,
    ),
    "table4": (_TRAINING,),
}
"""Known misprints and contradictions, by table."""


@dataclass(frozen=True)
class Printed:
    """One printed row: accuracy and drop in per cent, FLOPs in 10^9 multiply-accumulates.

    Attributes:
        table: number of the table.
        model: tokred's name of the model.
        method: tokred's name of the method, or "baseline".
        k: tokens that LoTM removes at each of its three stages, else None; in Tables 3 and 4, that of
            Table 1 for these FLOPs.
        top1: accuracy.
        drop: drop as printed, which is not always the difference of the accuracies.
        gflops: FLOPs.
    """

    table: int
    model: str
    method: str
    k: int | None
    top1: float
    drop: float | None
    gflops: float


def lines(table: int, model: str | None = None) -> list[Printed]:
    """The printed rows of a table in their order, for one model or all."""
    with (Path(__file__).parent / "printed.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["table"]) == table]
    return [
        Printed(
            table=table,
            model=row["model"],
            method=row["method"],
            k=int(row["k"]) if row["k"] else None,
            top1=float(row["top1"]),
            drop=float(row["drop"]) if row["drop"] else None,
            gflops=float(row["gflops"]),
        )
        for row in rows
        if model in (None, row["model"])
    ]


def models(table: int) -> tuple[str, ...]:
    """The models of a table, in their order."""
    return tuple(dict.fromkeys(line.model for line in lines(table)))
