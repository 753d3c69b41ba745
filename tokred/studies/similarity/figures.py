"""Figures of token similarity: its distribution, its means by layer, and its means by distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tokred.plots import COLOURS, INK, MARKERS, figure, style
from tokred.studies.similarity.accumulator import BINS, EDGES
from tokred.studies.similarity.pairs import KINDS
from tokred.studies.similarity.premise import by_distance, select
from tokred.studies.similarity.study import SENSES, Measurement
from tokred.utils.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("similarity", "layers", "distance")
_PANELS = {"adjacent": "(a) adjacent pairs", "window": "(b) windows of four tokens", "all": "(c) all pairs"}
_SENSE_COLOURS = dict(zip(SENSES, COLOURS, strict=False))
_FILL = "#8cbfe0"
_FEATURES = {"residual": "after attention and residual", "attention": "of what attention adds"}
_CURVES = 5  # layers in the figure of distances


def figures(measurement: Measurement, findings: pd.DataFrame) -> dict[str, Figure]:
    """All figures, by the names of their files."""
    with style():
        return {
            "similarity": _distributions(measurement, findings),
            "layers": _layers(measurement, findings),
            "distance": _distance(measurement),
        }


def _distributions(measurement: Measurement, findings: pd.DataFrame) -> Figure:
    """The paper's Fig. 1 at the first chosen layer, with and without shuffled patches."""
    drawing, kinds = figure(10, 3.7), [kind for kind in _PANELS if kind in measurement.pairs.kinds]
    axes = drawing.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    low, high = _range(measurement, kinds)
    # Some fifty bins cover the range.
    step = min((1, 2, 5, 10, 20, 40), key=lambda step: abs((high - low) * BINS / 2 / step - 50))
    edges = EDGES[::step]
    for axis, kind in zip(axes, kinds, strict=True):
        real, shuffled = (
            _counts(measurement, sense, kind).reshape(-1, step).sum(1) for sense in ("both", "position")
        )
        width = edges[1] - edges[0]
        axis.stairs(real / real.sum() / width, edges, fill=True, color=_FILL, label="picture as it is")
        look = {"color": _SENSE_COLOURS["position"], "linewidth": 1.4, "label": "patches shuffled"}
        axis.stairs(shuffled / shuffled.sum() / width, edges, **look)
        row = select(findings, "both", kind).iloc[0]
        axis.axvline(row["mean"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(f"{_PANELS[kind]}\n", fontsize=10.5)
        note = f"mean {row['mean']:.2f}, {100 * row['share_above_half']:.0f} % above 0.5, {row['shape']}"
        axis.text(0, 1.02, note, transform=axis.transAxes, fontsize=9)
        axis.set_xlabel("cosine similarity")
    axes[0].set_ylabel("density")
    axes[0].legend(loc="upper left", fontsize=9)
    axes[0].set_xlim(low, high)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "\u2212"))
    _title(drawing, measurement, f"layer {measurement.layers[0]}, {_FEATURES[measurement.features]}")
    return drawing


def _layers(measurement: Measurement, findings: pd.DataFrame) -> Figure:
    """Mean similarity of each kind at each layer, and the difference when patches are shuffled."""
    drawing = figure(10, 4.2)
    left, right = drawing.subplots(1, 2)
    for kind, colour, marker in zip(KINDS, COLOURS, MARKERS, strict=False):
        _curve(left, select(findings, "both", kind), "mean", KINDS[kind], colour, marker)
    for sense, marker in zip(SENSES, MARKERS, strict=False):
        near, line = select(findings, sense, "adjacent"), "--" if sense == "content" else "-"
        _curve(right, near, "difference", SENSES[sense], _SENSE_COLOURS[sense], marker, line)
    right.axhline(0, color=INK, linewidth=1)
    left.set(title="Mean similarity by kind of pairs", xlabel="layer", ylabel="cosine similarity")
    right.set(title="Adjacent pairs less all pairs", xlabel="layer", ylabel="difference")
    for axis in (left, right):
        axis.set_xticks(measurement.layers)
        axis.legend(fontsize=9)
    _title(drawing, measurement, _FEATURES[measurement.features])
    return drawing


def _distance(measurement: Measurement) -> Figure:
    """Mean similarity against distance on the grid, at some layers, with and without shuffled patches."""
    import matplotlib as mpl

    drawing, distances = figure(10, 3.9), by_distance(measurement)
    axes = drawing.subplots(1, len(SENSES), sharey=True)
    count = len(measurement.layers)
    places = np.linspace(0, count - 1, min(_CURVES, count)).round().astype(int)
    layers = [measurement.layers[place] for place in sorted(set(places))]
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(layers)))
    for axis, (sense, label) in zip(axes, SENSES.items(), strict=True):
        for layer, colour, marker in zip(layers, colours, MARKERS, strict=False):
            curve = distances[(distances["neighbours"] == sense) & (distances["layer"] == layer)]
            looks = {"color": colour, "marker": marker, "markersize": 3.5, "label": f"layer {layer}"}
            axis.plot(curve["distance"], curve["mean"], **looks)
        axis.set_title(label[0].upper() + label[1:], fontsize=10.5)
        axis.set_xlabel(f"apart in {'position' if sense == 'position' else 'the picture'} (patches)")
    axes[0].set_ylabel("mean cosine similarity")
    axes[0].legend(fontsize=9)
    _title(drawing, measurement, _FEATURES[measurement.features])
    return drawing


def _curve(
    axis: Any, rows: pd.DataFrame, column: str, label: str, colour: str, marker: str, line: str = "-"
) -> None:
    """A curve over layers with a band for its 95 % interval, or one point with a bar."""
    if rows.empty:
        return
    layers, values = rows["layer"].to_numpy(), rows[column].to_numpy()
    low, high = rows[f"{column}_lo"].to_numpy(), rows[f"{column}_hi"].to_numpy()
    if len(rows) == 1:
        bars = [values - low, high - values]
        axis.errorbar(layers, values, bars, color=colour, capsize=4, linestyle="none")
    axis.fill_between(layers, low, high, color=colour, alpha=0.18, lw=0)
    looks = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.6, "linestyle": line}
    axis.plot(layers, values, label=label, **looks)


def _counts(measurement: Measurement, sense: str, kind: str) -> np.ndarray:
    return measurement.sums[sense].counts[0, list(measurement.pairs.kinds).index(kind)].numpy()


def _range(measurement: Measurement, kinds: Sequence[str]) -> tuple[float, float]:
    """Range in tenths that leaves out at most a thousandth of the pairs on either side."""
    counts = [_counts(measurement, sense, kind) for sense in ("both", "position") for kind in kinds]
    below = [np.cumsum(each) / each.sum() for each in counts]
    low = min(EDGES[np.searchsorted(share, 0.001)] for share in below)
    high = max(EDGES[np.searchsorted(share, 0.999) + 1] for share in below)
    return float(np.floor(low * 10) / 10), float(min(1, np.ceil(high * 10) / 10))


def _title(drawing: Figure, measurement: Measurement, what: str) -> None:
    text = visible(f"Similarity of tokens: {measurement.title}, {what}")
    # Without math, since a folder's name may contain a dollar sign.
    drawing.suptitle(text, x=0.01, ha="left", fontsize=11, parse_math=False)
