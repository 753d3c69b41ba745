"""Accuracy against cost: a point for each method and budget, a line for each method, and the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokred.plots import COLOURS, INK, MARKERS, figure, style
from tokred.tables.results_table import measure
from tokred.tables.row import BASELINE, Row, rank
from tokred.utils.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axis = Literal["gflops", "images_per_s"]
_AXES = {
    "gflops": "FLOPs (G), fewer to the left",
    "images_per_s": "Measured images per second, faster to the right",
}
_COLUMNS = {"accuracy": "top1", "agreement": "agreement", "features": "feature_cosine"}
_LABELS = {
    "accuracy": "Top-1 (%)",
    "agreement": "Agreement with the dense model (%)",
    "features": "Cosine of features to the dense model's (%)",
}
_SAME = 0.001  # fraction of the dense model's FLOPs by which methods at one budget may differ
_MUTED = COLOURS[-1]  # of controls
_ARROW = 0.03  # height, as a fraction of the axis, of the arrows that stand for points below it


@dataclass(frozen=True)
class Point:
    """A row as the plot shows it: `x` in the unit of the axis, `y` and its interval in per cent."""

    method: str
    x: float
    y: float
    lo: float | None
    hi: float | None
    control: bool


def points(rows: Sequence[Row], x: Axis) -> list[Point]:
    """The rows that have both numbers, best first, without unfitted methods.

    Without labels, agreement with the dense model takes the place of accuracy; without a classifier, the
    cosine of the features.
    """
    column, shown = _COLUMNS[measure(rows)], []
    for row in rank(rows):
        y, lo, hi = (getattr(row, f"{column}{end}") for end in ("", "_lo", "_hi"))
        if column != "top1":
            y = 1.0 if row.method == BASELINE else y
            y, lo, hi = (None if share is None else 100 * share for share in (y, lo, hi))
        cost = getattr(row, x)
        if row.status != "ok" or row.unfitted or None in (cost, y) or not np.isfinite([cost, y]).all():
            continue
        if lo is None or hi is None or not np.isfinite([lo, hi]).all():
            lo = hi = None
        shown.append(Point(method=row.method, x=cost, y=y, lo=lo, hi=hi, control=row.control))
    return shown


def front(x: np.ndarray, y: np.ndarray, same: float = 0.0) -> np.ndarray:
    """Which points are on the Pareto front, [n] bool, where less `x` and more `y` is better.

    A point is better than another if its y is larger and its x is at most `same` larger, or if its y is equal
    and its x is smaller.
    """
    higher = (y[:, None] > y) & (x[:, None] <= x + same)  # [better, worse]
    cheaper = (y[:, None] == y) & (x[:, None] < x)
    return np.asarray(~(higher | cheaper).any(axis=0))


def looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in all figures of a run; controls are grey."""
    controls = {row.method for row in rows if row.control}
    methods = sorted({row.method for row in rows} - controls - {BASELINE})
    chosen = {
        name: (COLOURS[i % (len(COLOURS) - 1)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(methods)
    }
    chosen |= {name: (_MUTED, MARKERS[-1 - i % len(MARKERS)]) for i, name in enumerate(sorted(controls))}
    return chosen | {BASELINE: (INK, "o")}


def pareto(
    rows: Sequence[Row], x: Axis = "gflops", title: str = "", printed: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Draw accuracy against FLOPs or speed, with 95 % intervals, the front, and a legend by accuracy.

    Args:
        rows: the rows of one run, at one budget or several.
        x: the column of the cost, "gflops" or "images_per_s".
        title: the text above the figure.
        printed: further points, (x, top-1 in per cent), as a paper prints them.
    """
    shown, all_looks = points(rows, x), looks(rows)
    lines: dict[str, list[Point]] = {}
    for point in sorted(shown, key=lambda point: point.x):
        lines.setdefault(point.method, []).append(point)
    drawn = figure(6.6, max(3.5, 0.235 * len(lines) + 1.5))
    with style():
        axes = drawn.add_subplot()
        axes.set_title(textwrap.fill(visible(title), 64), parse_math=False)
        axes.set_xlabel(_AXES[x])
        axes.set_ylabel(_LABELS[measure(rows)])
        axes.margins(x=0.08)
        if not shown:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", va="center")
            return drawn
        floor = _limits(axes, shown)
        if printed:
            look: dict[str, Any] = {"color": INK, "ls": "none", "marker": "x", "ms": 5, "zorder": 2.5}
            axes.plot(*zip(*printed, strict=True), **look, label="printed in the paper")
            axes.legend(loc="lower right", fontsize=8)
        _draw_front(axes, shown, x)
        for name, line in lines.items():
            _draw_line(axes, line, all_looks[name], floor)
        swept = any(len(line) > 1 for line in lines.values())
        _draw_legend(axes, [line[0 if x == "gflops" else -1] for line in lines.values()], all_looks, floor)
        if swept:  # at the side, because the title may reach over the names
            where = "at the fewest FLOPs" if x == "gflops" else "at the highest speed"
            axes.text(1.05, -0.03, where, transform=axes.transAxes, fontsize=8, va="top")
    return drawn


def _limits(axes: Any, shown: Sequence[Point]) -> float:
    """Set the limits of y, without a few points far below all others, and return the lower one."""
    y = np.sort([point.y for point in shown])
    gaps = np.diff(y)
    cut = int(gaps.argmax()) + 1 if len(gaps) else 0
    if not (cut and gaps.max() > 0.5 * np.ptp(y) and gaps.max() > 25 and cut <= len(y) / 3):
        cut = 0
    inside = [point for point in shown if point.y >= y[cut]]
    low = min(point.y if point.lo is None else point.lo for point in inside)
    high = max(point.y if point.hi is None else point.hi for point in inside)
    pad = max(0.06 * (high - low), 0.5)
    axes.set_ylim(low - pad * (2.5 if cut else 1), high + pad)
    return float(axes.get_ylim()[0])


def _draw_front(axes: Any, shown: Sequence[Point], x: Axis) -> None:
    sign = 1 if x == "gflops" else -1
    same = _SAME * max(point.x for point in shown) if x == "gflops" else 0.0
    xs, ys = np.array([point.x for point in shown]), np.array([point.y for point in shown])
    best = np.flatnonzero(front(sign * xs, ys, same))
    best = best[np.argsort(sign * xs[best])]
    last = sign * max(sign * xs)  # the best point is also the best for a higher cost
    ends = ([*xs[best], last], [*ys[best], ys[best][-1]])
    axes.plot(*ends, drawstyle="steps-post", color=COLOURS[5], lw=5, alpha=0.35, zorder=1.5)


def _draw_line(axes: Any, line: Sequence[Point], look: tuple[str, str], floor: float) -> None:
    """Draw the points of a method and their intervals; an arrow stands for a point below the axis."""
    (colour, marker), control = look, line[0].control
    hollow = {"markerfacecolor": "none", "markeredgewidth": 1.4} if control else {}
    style = {"color": colour, "ls": "--" if control else "-", "lw": 1.4, "zorder": 3, **hollow}
    axes.plot([point.x for point in line], [point.y for point in line], marker=marker, ms=6, **style)
    for point in line:
        if point.y < floor:
            bottom = floor + _ARROW * (axes.get_ylim()[1] - floor)
            axes.plot([point.x], [bottom], marker="v", ms=7, **style)
        elif point.lo is not None and point.hi is not None:
            axes.plot([point.x] * 2, [point.lo, point.hi], color=colour, lw=1.1, alpha=0.45, zorder=2)


def _draw_legend(
    axes: Any, named: Sequence[Point], all_looks: dict[str, tuple[str, str]], floor: float
) -> None:
    """Write the names at the right, in the order of the points and as near to their heights as possible."""
    bottom, top = axes.get_ylim()
    height = 72 * axes.figure.get_size_inches()[1] - 80  # of the axes in points, about
    ordered = sorted(named, key=lambda point: -point.y)
    wanted = [(max(point.y, floor) - bottom) / (top - bottom) for point in ordered]
    for point, y in zip(ordered, spread(wanted, 13.5 / height), strict=True):
        colour, marker = all_looks[point.method]
        face = "none" if point.control else colour
        look = {"marker": marker, "color": colour, "markerfacecolor": face, "ms": 6, "clip_on": False}
        axes.plot([1.06], [y], transform=axes.transAxes, **look)
        text = f"{_short(point.method)}  {point.y:.1f}{', below' if point.y < floor else ''}"
        axes.text(1.085, y, text, transform=axes.transAxes, va="center", fontsize=9, parse_math=False)


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= 24 else name[:23] + "…"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places for labels from the top down, within 0 to 1, at least `gap` apart and near where `wanted`.

    Labels that would touch are moved together, as blocks around the mean of their wishes. The gap shrinks
    where not all labels fit.
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    blocks: list[list[float]] = []  # [sum of wishes without the offsets, number of labels]
    for k, wish in enumerate(wanted):
        blocks.append([wish + k * gap, 1.0])
        while len(blocks) > 1 and blocks[-1][0] / blocks[-1][1] > blocks[-2][0] / blocks[-2][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    places = [total / count for total, count in blocks for _ in range(int(count))]
    lowest = (len(places) - 1) * gap  # of the last label, without its offset
    return [min(max(place, lowest), 1.0) - k * gap for k, place in enumerate(places)]
