"""Figures of token similarity: its distribution at one layer, its means at all, and how it falls with distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokred.plots import COLOURS, INK, MARKERS, figure, style
from tokred.studies.similarity.accumulator import BINS, EDGES
from tokred.studies.similarity.pairs import KINDS
from tokred.studies.similarity.premise import Finding, by_distance, chosen
from tokred.studies.similarity.study import SENSES, Measured
from tokred.utils.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("similarity", "layers", "distance")
_PANELS = {"adjacent": "(a) adjacent pairs", "window": "(b) windows of four tokens", "all": "(c) all pairs"}
_SENSE_COLOURS = {"both": COLOURS[0], "position": COLOURS[1], "content": COLOURS[2]}
_FILL = "#8cbfe0"
_WHAT = {"residual": "after attention and residual", "attention": "of what attention adds"}
_LINES = 5  # layers in the figure of distances


def figures(measured: Measured, found: Sequence[Finding]) -> dict[str, Figure]:
    """All figures, by name of file."""
    with style():
        return {
            "similarity": distributions(measured, found),
            "layers": layers(measured, found),
            "distance": distance(measured),
        }


def distributions(measured: Measured, found: Sequence[Finding]) -> Figure:
    """The paper's Fig. 1 at the first chosen layer, and the same with the patches shuffled."""
    drawn, kinds = figure(10, 3.7), [kind for kind in _PANELS if kind in measured.pairs.kinds]
    axes = drawn.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    step, edges = _bins(measured, kinds)
    for axis, kind in zip(axes, kinds, strict=True):
        for sense, label in (("both", "picture as it is"), ("position", "patches shuffled")):
            counts = _counts(measured, sense, kind, step)
            density = counts / counts.sum() / (edges[1] - edges[0])
            if sense == "both":
                axis.stairs(density, edges, fill=True, color=_FILL, label=label)
            else:
                axis.stairs(density, edges, color=_SENSE_COLOURS[sense], linewidth=1.4, label=label)
        real = chosen(found, "both", kind)[0]
        axis.axvline(real.shape.mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(f"{_PANELS[kind]}\n", fontsize=10.5)
        note = f"mean {real.shape.mean:.2f}, {100 * real.above:.0f} % above 0.5, {real.shape.name}"
        axis.text(0, 1.02, note, transform=axis.transAxes, fontsize=9)
        axis.set_xlabel("cosine similarity")
    axes[0].set_ylabel("density")
    axes[0].legend(loc="upper left", fontsize=9)
    axes[0].set_xlim(*_range(measured, kinds))
    axes[0].xaxis.set_major_formatter(
        lambda value, place: f"{value:.6g}".replace("-", "\u2212")
    )  # short, so that panels may stand close
    _title(drawn, measured, f"layer {measured.layers[0]}, {_WHAT[measured.features]}")
    return drawn


def layers(measured: Measured, found: Sequence[Finding]) -> Figure:
    """Mean similarity of each kind at each layer, and what is left of the difference when patches are shuffled."""
    drawn = figure(10, 4.2)
    left, right = drawn.subplots(1, 2)
    for place, (kind, label) in enumerate(KINDS.items()):
        _line(left, chosen(found, "both", kind), "mean", label, COLOURS[place], MARKERS[place])
    left.set(title="Mean similarity by kind of pairs", xlabel="layer", ylabel="cosine similarity")
    for place, (sense, label) in enumerate(SENSES.items()):
        _line(
            right,
            chosen(found, sense, "adjacent"),
            "difference",
            label,
            _SENSE_COLOURS[sense],
            MARKERS[place],
            "--" if place == 2 else "-",
        )
    right.axhline(0, color=INK, linewidth=1)
    right.set(title="Adjacent pairs less all pairs", xlabel="layer", ylabel="difference")
    for axis in (left, right):
        axis.set_xticks(measured.layers)
        axis.legend(fontsize=9)
    _title(drawn, measured, _WHAT[measured.features])
    return drawn


def distance(measured: Measured) -> Figure:
    """Mean similarity against distance on the grid, at some layers, as the picture is and shuffled."""
    import matplotlib as mpl

    drawn = figure(10, 3.9)
    axes = drawn.subplots(1, len(SENSES), sharey=True)
    shown = sorted(
        set(np.linspace(0, len(measured.layers) - 1, min(_LINES, len(measured.layers))).round().astype(int))
    )
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(shown)))
    for axis, (sense, label) in zip(axes, SENSES.items(), strict=True):
        distances, means = by_distance(measured, sense)
        for place, colour, marker in zip(shown, colours, MARKERS, strict=False):
            axis.plot(
                distances,
                means[place],
                color=colour,
                marker=marker,
                markersize=3.5,
                label=f"layer {measured.layers[place]}",
            )
        axis.set_title(label[0].upper() + label[1:], fontsize=10.5)
        axis.set_xlabel(
            "apart in position (patches)" if sense == "position" else "apart in the picture (patches)"
        )
    axes[0].set_ylabel("mean cosine similarity")
    axes[0].legend(fontsize=9)
    _title(drawn, measured, _WHAT[measured.features])
    return drawn


def _line(
    axis: Any, found: Sequence[Finding], what: str, label: str, colour: str, marker: str, line: str = "-"
) -> None:
    """A curve over layers with a band for its 95 % interval, or one point with a bar."""
    if not found:
        return
    at = [f.layer for f in found]
    values = np.array([f.shape.mean if what == "mean" else f.difference for f in found])
    low, high = (np.array([getattr(f, f"{what}_{end}") for f in found]) for end in ("lo", "hi"))
    if len(found) == 1:
        axis.errorbar(at, values, [values - low, high - values], color=colour, capsize=4, linestyle="none")
    axis.fill_between(at, low, high, color=colour, alpha=0.18, lw=0)
    axis.plot(
        at, values, color=colour, marker=marker, markersize=4.5, linewidth=1.6, linestyle=line, label=label
    )


def _counts(measured: Measured, sense: str, kind: str, step: int) -> np.ndarray:
    counts = measured.tallies[sense].counts[0, list(measured.pairs.kinds).index(kind)].numpy()
    return counts.reshape(BINS // step, step).sum(1)


def _bins(measured: Measured, kinds: Sequence[str]) -> tuple[int, np.ndarray]:
    """How many of the tally's bins make one of the figure, so that some fifty cover what is seen, and their edges."""
    low, high = _range(measured, kinds)
    step = min((1, 2, 5, 10, 20, 40), key=lambda step: abs((high - low) * BINS / 2 / step - 50))
    return step, EDGES[::step]


def _range(measured: Measured, kinds: Sequence[str]) -> tuple[float, float]:
    """Tenths between which all but a thousandth of the pairs on either side lie."""
    every = [_counts(measured, sense, kind, 1) for sense in ("both", "position") for kind in kinds]
    below = [np.cumsum(counts) / counts.sum() for counts in every]
    low = min(EDGES[np.searchsorted(share, 0.001)] for share in below)
    high = max(EDGES[np.searchsorted(share, 0.999) + 1] for share in below)
    return float(np.floor(low * 10) / 10), float(min(1, np.ceil(high * 10) / 10))


def _title(drawn: Figure, measured: Measured, what: str) -> None:
    text = visible(f"Similarity of tokens: {measured.title}, {what}")
    drawn.suptitle(
        text, x=0.01, ha="left", fontsize=11, parse_math=False
    )  # a dollar sign in a folder's name begins no formula
