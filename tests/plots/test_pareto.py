"""Figures: their points, the front against brute force, labels that do not touch, and SVG for a page."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.reports import made_up
from hypothesis import given
from hypothesis import strategies as st

from tokred import plots
from tokred.plots import pareto
from tokred.tables.row import BASELINE, Row

GRID = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(GRID, st.sampled_from([0.0, 0.5, 1.0]))
def test_front_is_what_nobody_is_better_than(points, same):
    def better(a, b):
        return (a[1] > b[1] and a[0] <= b[0] + same) or (a[1] == b[1] and a[0] < b[0])

    found = pareto.front(*np.array(points, dtype=float).T, same)
    assert found.tolist() == [not any(better(other, point) for other in points) for point in points]
    assert found.any()


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=20), st.floats(0.01, 0.3))
def test_labels_keep_their_order_and_distance_and_stay_inside(wishes, gap):
    wanted = sorted(wishes, reverse=True)
    places = pareto.spread(wanted, gap)
    fits = min(gap, 1 / max(1, len(wanted) - 1))
    assert all(above - below >= fits - 1e-9 for above, below in pairwise(places))
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


def test_labels_that_touch_nothing_stay_where_they_are_and_others_move_alike():
    assert pareto.spread([0.9, 0.5, 0.1], 0.2) == pytest.approx([0.9, 0.5, 0.1])
    assert pareto.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.6, 0.5, 0.4])
    assert pareto.spread([0.9, 0.52, 0.48, 0.1], 0.1) == pytest.approx([0.9, 0.55, 0.45, 0.1])


def test_points_are_the_measured_rows():
    rows, _ = made_up()
    rows += [
        Row("failed", status="failed", top1=1.0, gflops=1.0),
        Row("raw", top1=1.0, gflops=1.0, unfitted=True),
        Row("slow", top1=1.0),
    ]
    shown = pareto.points(rows, "gflops")
    assert {(p.method, p.x, p.y, p.lo, p.hi) for p in shown} == {
        (r.method, r.gflops, r.top1, r.top1_lo, r.top1_hi) for r in rows[:5]
    }
    assert [p.y for p in shown[1:]] == sorted((p.y for p in shown[1:]), reverse=True)
    unlabelled, _ = made_up(labelled=False)
    assert {(p.method, p.y, p.lo) for p in pareto.points(unlabelled, "images_per_s")} == {
        (BASELINE, 100.0, None)
    } | {(r.method, 100 * r.agreement, None) for r in unlabelled[1:]}


def lines_of(figure):
    return [line for line in figure.axes[0].get_lines() if line.get_transform() != figure.axes[0].transAxes]


def test_a_long_title_is_broken_and_stays_in_the_figure():
    title = "vit_base_patch16_224.augreg_in21k_ft_in1k on a folder with a long name, 50,000 images, NOT on IN"
    figure = pareto.pareto(made_up((0.2, 0.3))[0], "gflops", title)
    figure.draw_without_rendering()
    drawn = figure.axes[0].title if figure.axes[0].title.get_text() else figure.axes[0]._left_title
    assert " ".join(drawn.get_text().split()) == title
    assert drawn.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("budgets", [(0.3,), (0.2, 0.3, 0.4)])
def test_a_figure_shows_each_point_its_interval_and_its_name(budgets):
    rows, _ = made_up(budgets)
    figure = pareto.pareto(rows, "gflops", "a title")
    drawn = {
        (round(x, 9), round(y, 9))
        for line in lines_of(figure)
        if line.get_marker() != "None"
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert drawn == {(round(row.gflops, 9), round(row.top1, 9)) for row in rows}
    whiskers = {
        tuple(line.get_ydata())
        for line in lines_of(figure)
        if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    }
    assert {(row.top1_lo, row.top1_hi) for row in rows} <= whiskers
    texts = [text.get_text() for text in figure.axes[0].texts]
    for method in {row.method for row in rows}:
        least = min((row for row in rows if row.method == method), key=lambda row: row.gflops)
        assert f"{method}  {least.top1:.1f}" in texts


def test_what_is_far_below_does_not_press_the_rest_together():
    scores = {"a": 90.0, "b": 89.0, "c": 88.0, "d": 80.0, "lost": 9.0}
    rows = [
        Row(BASELINE, gflops=2.0, top1=91.0),
        *(Row(name, gflops=1.0, top1=score) for name, score in scores.items()),
    ]
    figure = pareto.pareto(rows)
    assert 60 < figure.axes[0].get_ylim()[0] < 80
    assert "lost  9.0, below" in [text.get_text() for text in figure.axes[0].texts]
    rows[-1] = replace(rows[-1], top1=60.0)
    assert pareto.pareto(rows).axes[0].get_ylim()[0] < 60


@pytest.mark.parametrize("budgets", [(0.3,), (0.1, 0.2, 0.3, 0.4)])
def test_a_point_stands_at_its_flops_and_the_legend_is_ordered_as_the_points_are(budgets):
    rows, _ = made_up(budgets, methods=tuple(f"m{k}" for k in range(14)))
    rows = [replace(row, gflops=1.258 * (1 - (row.budget or 0))) for row in rows]
    figure = pareto.pareto(rows)
    plots.png(figure, 50)  # places everything
    axes = figure.axes[0]
    for line in lines_of(figure):
        if line.get_marker() != "None":
            assert line.get_transform() == axes.transData
    texts = [text for text in axes.texts if text.get_text().startswith(("m", "baseline"))]
    boxes = [text.get_window_extent() for text in texts]
    assert len(texts) == 15
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(boxes))  # no two names touch
    scores = [float(text.get_text().split()[1]) for text in texts]
    assert scores == sorted(scores, reverse=True)
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_looks_tell_methods_apart():
    names = [f"m{k}" for k in range(24)]
    found = pareto.looks([Row(BASELINE), *map(Row, names), Row("random", control=True)])
    assert len({found[name] for name in names}) == 24
    assert found["random"][0] == plots.COLOURS[-1]


def test_names_that_matplotlib_would_take_for_formulas_are_text():
    rows = [
        Row(BASELINE, gflops=2.0, top1=90.0),
        Row("$\\frac{$", gflops=1.0, top1=80.0),
        Row("漢字", gflops=1.1, top1=85.0),
    ]
    text = plots.svg(pareto.pareto(rows, title="$100 & more$"))
    ElementTree.fromstring(text)
    assert "$\\frac{$" in text
    assert "$100 &amp; more$" in text


def test_an_inline_figure_has_ids_of_its_own_and_the_colours_of_the_page():
    rows, _ = made_up()
    parts = [
        plots.inline(pareto.pareto(rows, x), name) for x, name in (("gflops", "one"), ("images_per_s", "two"))
    ]
    ids = [found for part in parts for found in re.findall(r' id="([^"]*)"', part)]
    assert len(ids) == len(set(ids))
    for part, name in zip(parts, ("one", "two"), strict=True):
        ElementTree.fromstring(part)
        used = re.findall(r'(?:url\(#|href="#)([^")]+)', part)
        assert used
        assert set(used) <= set(ids)
        assert all(found.startswith(f"{name}-") for found in used)
        assert plots.INK not in part
        assert "currentColor" in part
        assert "metadata" not in part
        for index, colour in enumerate(plots.COLOURS):
            assert part.count(colour) == part.count(f"var(--plot-{index}, {colour})")


def test_the_same_rows_are_the_same_file():
    rows, _ = made_up()
    assert plots.svg(pareto.pareto(rows)) == plots.svg(pareto.pareto(rows))


def test_nothing_to_show_is_a_figure_that_says_so():
    assert "nothing was measured" in plots.svg(pareto.pareto([Row("lotm", status="failed")]))
    assert plots.png(pareto.pareto([Row(BASELINE, gflops=1.0, top1=90.0)]), 40).startswith(b"\x89PNG")
