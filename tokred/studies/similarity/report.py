"""The findings as tables for the terminal and as files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from tokred import plots
from tokred.errors import TokredError
from tokred.studies.similarity.accumulator import BINS, EDGES
from tokred.studies.similarity.figures import FIGURES, figures
from tokred.studies.similarity.pairs import KINDS
from tokred.studies.similarity.premise import FAILS, HOLDS, by_distance, lowest, select
from tokred.studies.similarity.study import SENSES, Measurement
from tokred.tables.render import Table
from tokred.utils.atomic import check_writable, write_all
from tokred.utils.files import read_text
from tokred.utils.provenance import code_hash, versions

TABLES = ("similarity.csv", "histograms.csv", "distance.csv")
FILES = (*TABLES, *(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")))
_STYLES = {HOLDS: "green", FAILS: "red"}
_COARSE = 10  # bins of an accumulator in a bin of histograms.csv

#: The paper's words about its Fig. 1, layer 1 of a DeiT-S on ImageNet-1K.
PAPER = {
    "adjacent": "two modes, most scores above 0.5",
    "window": "two modes, more uniform, lower",
    "all": "a normal distribution",
}


def histograms(measurement: Measurement) -> pd.DataFrame:
    """Numbers of pairs by similarity, in bins of a hundredth, without empty bins."""
    counts = np.stack([sums.counts.numpy() for sums in measurement.sums.values()])
    counts = counts.reshape(*counts.shape[:-1], BINS // _COARSE, _COARSE).sum(-1)
    sense, layer, kind, place = np.nonzero(counts)
    return pd.DataFrame(
        {
            "layer": np.array(measurement.layers)[layer],
            "neighbours": np.array(list(measurement.sums))[sense],
            "kind": np.array(list(measurement.pairs.kinds))[kind],
            "from": EDGES[:-1:_COARSE].round(6)[place],
            "pairs": counts[sense, layer, kind, place],
        }
    )


def premise_table(measurement: Measurement, findings: pd.DataFrame) -> Table:
    """One row for each layer: mean similarities, and the difference that remains after shuffling."""
    near, least = select(findings, "both", "adjacent"), lowest(by_distance(measurement))
    columns: dict[str, Iterable[str]] = {"Layer": map(str, near["layer"])}
    for kind in (kind for kind in PAPER if kind in measurement.pairs.kinds):
        head = KINDS[kind].removesuffix(" pairs").replace("windows of four", "windows")
        columns[head] = map("{:.3f}".format, select(findings, "both", kind)["mean"])
    columns |= {
        "(a) - (c)": _differences(near),
        "Of images": map("{:.0%}".format, near["share_of_images"]),
        "Premise": near["verdict"],
        "Least alike": (str(least[layer]) for layer in near["layer"]),
        "Position only": _differences(select(findings, "position", "adjacent")),
        "Content only": _differences(select(findings, "content", "adjacent")),
    }
    premise = list(columns).index("Premise")
    return Table(
        title=measurement.title,
        headers=list(columns),
        rows=list(zip(*columns.values(), strict=True)),
        words=frozenset([premise]),
        cell_styles={(place, premise): _STYLES.get(word, "") for place, word in enumerate(near["verdict"])},
        notes=[
            "± is half of the 95 % interval. Of images: fraction of images in which adjacent pairs are more "
            "similar than all pairs. Least alike: distance in patches at which tokens are least similar."
        ],
    )


def _differences(rows: pd.DataFrame) -> list[str]:
    ends = zip(rows["difference"], rows["difference_lo"], rows["difference_hi"], strict=True)
    return [f"{difference:+.3f} ± {(hi - lo) / 2:.3f}" for difference, lo, hi in ends]


def paper_table(findings: pd.DataFrame) -> Table:
    """The first layer's distributions beside the paper's words about its Fig. 1."""
    layer = findings["layer"].iloc[0]
    rows = []
    for kind, words in PAPER.items():
        for row in select(findings, "both", kind)[:1].to_dict("records"):
            numbers = [row[name] for name in ("mean", "sd", "skew", "excess_kurtosis", "normal_distance")]
            share = f"{row['share_above_half']:.1%}"
            rows.append([KINDS[kind], words, row["shape"], share, *(f"{number:.3f}" for number in numbers)])
    return Table(
        title=f"Layer {layer} beside the paper's Fig. 1 (DeiT-S, ImageNet-1K, layer 1)",
        headers=(
            "Pairs",
            "The paper",
            "Here",
            "> 0.5",
            "Mean",
            "SD",
            "Skew",
            "Excess kurtosis",
            "From normal",
        ),
        rows=rows,
        words=frozenset((0, 1, 2)),
    )


def check_folder(out: Path) -> None:
    """Create the folder of the results, unless it contains other results that would be overwritten.

    Raises:
        TokredError: it contains other results, or cannot be written.
    """
    check_writable(out)
    try:
        run = json.loads(read_text(out / "run.json"))
        ours = isinstance(run, dict) and run.get("command") == "similarity"
    except FileNotFoundError:
        ours = not any((out / name).exists() for name in FILES)
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise TokredError(
            f"{out} contains other results, which would be overwritten; choose another folder with --out."
        )


def write(measurement: Measurement, findings: pd.DataFrame, out: Path) -> None:
    """Write tables and figures, and run.json last.

    Raises:
        TokredError: a file cannot be written; an existing one is unchanged.
    """
    check_folder(out)
    run = {
        "command": "similarity",
        "title": measurement.title,
        **measurement.about,
        "images": measurement.images,
        "neighbours": SENSES,
        **versions(),
        "code": code_hash(),
    }
    tables = dict(zip(TABLES, (findings, histograms(measurement), by_distance(measurement)), strict=True))
    content = {
        **{name: _csv(table) for name, table in tables.items()},
        **plots.files(figures(measurement, findings)),
        "run.json": (json.dumps(run, indent=2) + "\n").encode(),
    }
    write_all(out, content, "make room or choose another folder with --out")


def _csv(table: pd.DataFrame) -> bytes:
    # The edges in histograms.csv have at most two decimals, so one format fits all tables.
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
