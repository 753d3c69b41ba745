"""Findings as tables for the terminal and as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from tokred.errors import TokredError
from tokred.plots import png, svg
from tokred.studies.similarity import figures as histograms
from tokred.studies.similarity.accumulator import BINS, EDGES
from tokred.studies.similarity.pairs import KINDS
from tokred.studies.similarity.premise import FAILS, HOLDS, Finding, by_distance, chosen, lowest
from tokred.studies.similarity.study import SENSES, Measured
from tokred.utils.atomic import check_writable, write_all
from tokred.utils.provenance import code_hash, versions
from tokred.utils.text import visible

FILES = (
    "similarity.csv",
    "histograms.csv",
    "distance.csv",
    *(f"{name}.{kind}" for name in histograms.FIGURES for kind in ("svg", "png")),
)
_COARSE = 10  # bins of a tally in one of histograms.csv

#: The paper's words on its Fig. 1, layer 1 of a DeiT-S on ImageNet-1K, beside which layer 1 or the first chosen layer is put.
PAPER = {
    "adjacent": "two modes, most scores above 0.5",
    "window": "two modes, more uniform, lower",
    "all": "a normal distribution",
}
_STYLES = {HOLDS: "green", FAILS: "red"}


def frame(found: Sequence[Finding], measured: Measured) -> pd.DataFrame:
    """All figures, a row for each finding, as similarity.csv has them."""
    return pd.DataFrame(
        [
            {
                "model": measured.model, "data": measured.data, "images": measured.images, "features": measured.features,
                "layer": f.layer, "neighbours": f.sense, "kind": f.kind, "pairs": f.pairs,
                "mean": f.shape.mean, "mean_lo": f.mean_lo, "mean_hi": f.mean_hi, "sd": f.shape.sd,
                **dict(zip(("q05", "q25", "median", "q75", "q95"), f.quantiles, strict=True)),
                "share_above_half": f.above, "shape": f.shape.name, "modes": f.shape.modes, "bimodality": f.shape.bimodality,
                "skew": f.shape.skew, "excess_kurtosis": f.shape.excess, "normal_distance": f.shape.distance,
                "difference": f.difference, "difference_lo": f.difference_lo, "difference_hi": f.difference_hi,
                "effect": f.effect, "superiority": f.superiority, "share_of_images": f.share, "verdict": f.verdict,
            }
            for f in found
        ]
    )  # fmt: skip


def histogram_frame(measured: Measured) -> pd.DataFrame:
    """Pairs by similarity, in bins of a hundredth; empty ones are left out."""
    lower = EDGES[:-1:_COARSE].round(6)
    parts = []
    for sense, tally in measured.tallies.items():
        counts = tally.counts.numpy().reshape(*tally.counts.shape[:2], BINS // _COARSE, _COARSE).sum(-1)
        place, kind, place_in_range = np.nonzero(counts)
        layers, kinds = np.array(measured.layers), np.array(list(measured.pairs.kinds))
        columns = {
            "layer": layers[place],
            "neighbours": sense,
            "kind": kinds[kind],
            "from": lower[place_in_range],
        }
        parts.append(pd.DataFrame({**columns, "pairs": counts[place, kind, place_in_range]}))
    return pd.concat(parts, ignore_index=True)


def distance_frame(measured: Measured) -> pd.DataFrame:
    """Mean similarity by layer and distance on the grid of patches."""
    parts = []
    for sense in measured.tallies:
        distances, means = by_distance(measured, sense)
        for layer, mean in zip(measured.layers, means, strict=True):
            parts.append(
                pd.DataFrame({"layer": layer, "neighbours": sense, "distance": distances, "mean": mean})
            )
    return pd.concat(parts, ignore_index=True)


def premise_table(measured: Measured, found: Sequence[Finding]) -> Table:
    """A row for each layer: mean similarities, and what shuffling leaves of the difference."""
    title = Text(visible(measured.title), style="table.title")
    caption = (
        "± is half of the 95 % interval. Of images: those in which adjacent pairs are more similar than all pairs. "
        "Least alike: the distance in patches at which tokens are least similar."
    )
    table = Table(
        title=title, title_justify="left", header_style="bold", caption=caption, caption_justify="left"
    )
    kinds = [kind for kind in PAPER if chosen(found, "both", kind)]
    table.add_column("Layer", justify="right")
    for kind in kinds:
        table.add_column(
            KINDS[kind].removesuffix(" pairs").replace("windows of four", "windows"), justify="right"
        )
    for header in ("(a) - (c)", "Of images", "Premise", "Least alike", "Position only", "Content only"):
        table.add_column(header, justify="left" if header == "Premise" else "right")
    by_place = {(f.layer, f.sense, f.kind): f for f in found}
    for layer, least in zip(measured.layers, lowest(measured, "both"), strict=True):
        near = by_place[layer, "both", "adjacent"]
        table.add_row(
            str(layer), *(f"{by_place[layer, 'both', kind].shape.mean:.3f}" for kind in kinds), _difference(near), f"{near.share:.0%}",
            Text(near.verdict, style=_STYLES.get(near.verdict, "")), str(least),
            *(_difference(by_place[layer, sense, "adjacent"]) for sense in ("position", "content")),
        )  # fmt: skip
    return table


def _difference(found: Finding) -> str:
    return f"{found.difference:+.3f} ± {(found.difference_hi - found.difference_lo) / 2:.3f}"


def paper_table(found: Sequence[Finding]) -> Table:
    """The first layer's distributions beside the paper's words on its Fig. 1."""
    layer = found[0].layer
    table = Table(
        title=f"Layer {layer} beside the paper's Fig. 1 (DeiT-S, ImageNet-1K, layer 1)",
        title_justify="left",
        header_style="bold",
    )
    for header in (
        "Pairs",
        "The paper",
        "Here",
        "> 0.5",
        "Mean",
        "SD",
        "Skew",
        "Excess kurtosis",
        "From normal",
    ):
        table.add_column(header, justify="left" if header in ("Pairs", "The paper", "Here") else "right")
    for kind, words in PAPER.items():
        for f in chosen(found, "both", kind)[:1]:
            figures = (f.shape.mean, f.shape.sd, f.shape.skew, f.shape.excess, f.shape.distance)
            table.add_row(
                KINDS[kind], words, f.shape.name, f"{f.above:.1%}", *(f"{figure:.3f}" for figure in figures)
            )
    return table


def files(measured: Measured, found: Sequence[Finding]) -> dict[str, bytes]:
    """Everything but run.json, by name."""
    csv = {
        "similarity.csv": frame(found, measured).to_csv(index=False, float_format="%.6g"),
        "histograms.csv": histogram_frame(measured).to_csv(index=False),
        "distance.csv": distance_frame(measured).to_csv(index=False, float_format="%.6g"),
    }
    drawn = histograms.figures(measured, found)
    return {
        **{name: text.encode() for name, text in csv.items()},
        **{f"{name}.svg": svg(figure).encode() for name, figure in drawn.items()},
        **{f"{name}.png": png(figure) for name, figure in drawn.items()},
    }


def check_folder(out: Path) -> None:
    """Whether the results may go to a folder, which is made.

    Raises:
        TokredError: it cannot be written, or holds something else that they would replace.
    """
    check_writable(out)
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        ours = isinstance(run, dict) and run.get("command") == "similarity"
    except FileNotFoundError:
        ours = not any((out / name).exists() for name in FILES)
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise TokredError(
            f"{out} holds results of something else, which would be lost; choose another folder with --out."
        )


def write(measured: Measured, found: Sequence[Finding], out: Path) -> None:
    """Write all files, run.json last.

    Raises:
        TokredError: one cannot be written; what was there before is unchanged.
    """
    check_folder(out)
    senses: dict[str, Any] = {sense: SENSES[sense] for sense in measured.tallies}
    run = {
        "command": "similarity",
        "title": measured.title,
        **measured.about,
        "images": measured.images,
        "neighbours": senses,
        **versions(),
        "code": code_hash(),
    }
    content = {**files(measured, found), "run.json": (json.dumps(run, indent=2) + "\n").encode()}
    write_all(out, content, "make room or choose another folder with --out")
