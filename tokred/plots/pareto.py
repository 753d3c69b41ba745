"""Accuracy against what it costs: one point for each method and budget, a line for each method, and their front."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokred.plots import COLOURS, INK, MARKERS, figure, style
from tokred.tables.row import BASELINE, Row, rank
from tokred.utils.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axis = Literal["gflops", "images_per_s"]
_AXES = {
    "gflops": "FLOPs (G), fewer to the left",
    "images_per_s": "Measured images per second, faster to the right",
}
_SAME = (
    0.001  # of the unreduced model's FLOPs: what a budget may be missed by is no difference between methods
)
_MUTED = COLOURS[-1]  # of controls
_ARROW = 0.03  # of the axis' height: where the arrows are that stand for points below it


@dataclass(frozen=True)
class Point:
    """One row of a table, as the plot shows it: `x` in the axis' unit, `y` and its interval in per cent."""

    method: str
    x: float
    y: float
    lo: float | None
    hi: float | None
    control: bool


def points(rows: Sequence[Row], x: Axis) -> list[Point]:
    """The rows that have both figures, best first; methods that nobody has fitted are no result and are left out.

    Without labels there is no accuracy, and the share of images on which a method agrees with the unreduced model stands for it.
    """
    labelled, found = measures_accuracy(rows), []
    for row in rank(rows):
        cost = getattr(row, x)
        good = row.top1 if labelled else 100.0 if row.method == BASELINE else _per_cent(row.agreement)
        if (
            row.status != "ok"
            or row.unfitted
            or cost is None
            or good is None
            or not np.isfinite([cost, good]).all()
        ):
            continue
        lo, hi = (
            (row.top1_lo, row.top1_hi)
            if labelled
            else (_per_cent(row.agreement_lo), _per_cent(row.agreement_hi))
        )
        limits: tuple[float | None, float | None] = (None, None)
        if lo is not None and hi is not None and np.isfinite([lo, hi]).all():
            limits = (lo, hi)
        found.append(Point(row.method, cost, good, *limits, row.control))
    return found


def measures_accuracy(rows: Sequence[Row]) -> bool:
    """Whether the images have labels, so that there is an accuracy."""
    return any(row.top1 is not None for row in rows)


def _per_cent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def front(x: np.ndarray, y: np.ndarray, same: float = 0.0) -> np.ndarray:
    """Which points no other is better than, [n] bool, where less `x` and more `y` is better.

    Another one is better if its y is larger and its x is not more than `same` larger, or if its y is equal and its x is smaller.
    """
    wins = (y[:, None] > y) & (x[:, None] <= x + same) | (y[:, None] == y) & (
        x[:, None] < x
    )  # [better, worse]
    return np.asarray(~wins.any(axis=0))


def looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in all figures of a run; the baseline is black and controls are grey."""
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
    """Accuracy against FLOPs or speed, with 95 % intervals, the front, and the methods' names by rank at the side.

    Args:
        rows: of one run, at one budget or several.
        x: "gflops" or "images_per_s", a column.
        title: above the figure.
        printed: further points, (x, top-1 in per cent), that somebody else has printed.
    """
    shown, all_looks = points(rows, x), looks(rows)
    names = list(dict.fromkeys(point.method for point in shown))
    lines = {
        name: sorted((point for point in shown if point.method == name), key=lambda point: point.x)
        for name in names
    }
    drawn = figure(6.6, max(3.5, 0.235 * len(names) + 1.5))
    with style():
        axes = drawn.add_subplot()
        axes.set_title(textwrap.fill(visible(title), 64), parse_math=False)
        axes.set_xlabel(_AXES[x])
        axes.set_ylabel("Top-1 (%)" if measures_accuracy(rows) else "Agreement with the unreduced model (%)")
        axes.margins(x=0.12 if crowded(shown) else 0.08)
        if not shown:
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", va="center")
            return drawn
        floor = _limits(axes, shown)
        if printed:
            axes.plot(
                *zip(*printed, strict=True),
                color=INK,
                ls="none",
                marker="x",
                ms=5,
                zorder=2.5,
                label="printed in the paper",
            )
            axes.legend(loc="lower right", fontsize=8)
        _draw_front(axes, shown, x)
        named = []
        swept = any(len(line) > 1 for line in lines.values())
        crowd = _crowd(shown) if crowded(shown) else []
        for name, line in lines.items():
            beside = _beside(crowd.index(name), len(crowd), 1.5 if swept else 5.5) if name in crowd else 0.0
            named.append(
                (line[0 if x == "gflops" else -1], _draw_line(axes, line, all_looks[name], floor, beside))
            )
        note = "" if not swept else "at the fewest FLOPs" if x == "gflops" else "at the highest speed"
        _draw_names(axes, named, all_looks, floor, note)
    return drawn


def crowded(shown: Sequence[Point]) -> bool:
    """Whether methods stand above each other, as at one budget, so that they are better drawn side by side."""
    near = _near(shown)[[point.method != BASELINE for point in shown]]
    return len(near) > 1 and float(near.mean()) > 0.5


def _crowd(shown: Sequence[Point]) -> list[str]:
    """The methods that share a place with another one; whoever has its own, such as a control of lower resolution, stays there."""
    found = [
        point.method
        for point, near in zip(shown, _near(shown), strict=True)
        if near and point.method != BASELINE
    ]
    return list(dict.fromkeys(found))


def _near(shown: Sequence[Point]) -> np.ndarray:
    """Which points stand above or below another method's, [n] bool."""
    x, methods = np.array([point.x for point in shown]), np.array([point.method for point in shown])
    if not len(x):
        return np.zeros(0, dtype=bool)
    apart = np.abs(x[:, None] - x)
    apart[methods[:, None] == methods] = np.inf
    return np.asarray(apart.min(axis=1, initial=np.inf) < 0.01 * max(float(np.ptp(x)), 1e-9))


def _beside(k: int, count: int, step: float) -> float:
    """How far, in typographic points, the k-th of some methods is drawn from its place. Lines of a sweep are hardly parted: they cross."""
    return (k - (count - 1) / 2) * min(step, 60 / count)


def _limits(axes: Any, shown: Sequence[Point]) -> float:
    """Set the limits of y; what is far below everything else is beyond them, lest the rest be one line. The lower limit."""
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
    last = sign * max(sign * xs)  # the best one is the best for whoever has more to spend, too
    axes.plot(
        [*xs[best], last],
        [*ys[best], ys[best][-1]],
        drawstyle="steps-post",
        color=COLOURS[5],
        lw=5,
        alpha=0.35,
        zorder=1.5,
    )


def _draw_line(axes: Any, line: Sequence[Point], look: tuple[str, str], floor: float, beside: float) -> Any:
    """The points of a method and their intervals; an arrow stands for a point that is below the axis. The transform that places them."""
    from matplotlib.transforms import ScaledTranslation

    colour, marker = look
    place = axes.transData + ScaledTranslation(beside / 72, 0, axes.figure.dpi_scale_trans)
    hollow = {"markerfacecolor": "none", "markeredgewidth": 1.4} if line[0].control else {}
    dashes, xs, ys = (
        "--" if line[0].control else "-",
        [point.x for point in line],
        [point.y for point in line],
    )
    axes.plot(
        xs, ys, color=colour, ls=dashes, lw=1.4, marker=marker, ms=6, transform=place, zorder=3, **hollow
    )
    for point in line:
        if point.y < floor:
            bottom = floor + _ARROW * (axes.get_ylim()[1] - floor)
            axes.plot(
                [point.x], [bottom], color=colour, marker="v", ms=7, transform=place, zorder=3, **hollow
            )
        elif point.lo is not None and point.hi is not None:
            axes.plot(
                [point.x] * 2,
                [point.lo, point.hi],
                color=colour,
                lw=1.1,
                alpha=0.6,
                transform=place,
                zorder=2,
            )
    return place


def _draw_names(
    axes: Any,
    drawn: Sequence[tuple[Point, Any]],
    all_looks: dict[str, tuple[str, str]],
    floor: float,
    note: str,
) -> None:
    """The names at the right, best first, as evenly as they need to be; without a note each is tied to its point."""
    bottom, top = axes.get_ylim()
    height = 72 * axes.figure.get_size_inches()[1] - 80  # of the axes, in points, about
    ordered = sorted(drawn, key=lambda item: -item[0].y)
    wanted = [(max(point.y, floor) - bottom) / (top - bottom) for point, _ in ordered]
    for (point, place), y in zip(ordered, spread(wanted, 13.5 / height), strict=True):
        colour, marker = all_looks[point.method]
        face = "none" if point.control else colour
        axes.plot(
            [1.06],
            [y],
            marker=marker,
            color=colour,
            markerfacecolor=face,
            ms=6,
            transform=axes.transAxes,
            clip_on=False,
        )
        below = ", below" if point.y < floor else ""
        axes.text(
            1.085,
            y,
            f"{_short(point.method)}  {point.y:.1f}{below}",
            transform=axes.transAxes,
            va="center",
            fontsize=9,
            parse_math=False,
        )
        if not note:
            line = {"arrowstyle": "-", "color": colour, "lw": 0.8, "alpha": 0.5, "shrinkA": 0, "shrinkB": 4}
            xy = (point.x, max(point.y, bottom + _ARROW * (top - bottom)))
            axes.annotate(
                "",
                xy,
                (1.04, y),
                xycoords=place,
                textcoords=axes.transAxes,
                arrowprops=line,
                annotation_clip=False,
            )
    if note:
        axes.text(
            1.05, -0.03, note, transform=axes.transAxes, fontsize=8, va="top"
        )  # the title may reach over the names


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= 24 else name[:23] + "…"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places for labels, from the top down, at least `gap` apart and as near to where they are wanted as that allows; within 0 to 1.

    Labels that would touch are moved together, as blocks around the mean of their wishes; of more than fit, the gaps shrink.
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    blocks: list[list[float]] = []  # [sum of wishes with the offsets taken out, how many]
    for k, wish in enumerate(wanted):
        blocks.append([wish + k * gap, 1.0])
        while len(blocks) > 1 and blocks[-1][0] / blocks[-1][1] > blocks[-2][0] / blocks[-2][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    places = [total / count for total, count in blocks for _ in range(int(count))]
    highest, lowest = (
        1.0,
        (len(places) - 1) * gap,
    )  # of the first label, and of the last with its offset taken out
    return [min(max(place, lowest), highest) - k * gap for k, place in enumerate(places)]
