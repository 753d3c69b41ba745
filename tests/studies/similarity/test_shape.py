"""Shapes of distributions against scipy and closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokred.evaluation.metrics import interval, intervals
from tokred.studies.similarity.accumulator import BINS, EDGES
from tokred.studies.similarity.shape import modes, quantiles, shape, superiority


def histogram(values):
    values = np.asarray(values)
    return np.histogram(values, EDGES)[0], np.array([(values**power).sum() for power in (1, 2, 3, 4)])


def shape_of(values):
    counts, sums = histogram(values)
    return shape(counts, EDGES, sums)


def test_moments_are_those_of_scipy():
    values = np.random.default_rng(0).beta(2, 5, 5000)
    found = shape_of(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.sd == pytest.approx(values.std())
    assert found.skew == pytest.approx(stats.skew(values), abs=1e-6)
    assert found.excess_kurtosis == pytest.approx(stats.kurtosis(values), abs=1e-6)
    assert found.normal_distance == pytest.approx(
        stats.kstest(values, stats.norm(values.mean(), values.std()).cdf).statistic, abs=0.005
    )


def test_shapes_have_their_names():
    rng = np.random.default_rng(0)
    assert shape_of(rng.normal(0.2, 0.1, 20_000)).shape == "normal"
    assert shape_of(rng.normal(0.2, 0.01, 20_000)).shape == "normal"
    assert shape_of(1 - rng.exponential(0.1, 20_000).clip(0, 2)).shape == "one mode"
    two = np.concatenate([rng.normal(-0.3, 0.1, 10_000), rng.normal(0.5, 0.1, 5_000)])
    assert shape_of(two).shape == "bimodal"
    assert shape_of(np.concatenate([two, rng.normal(0.9, 0.02, 5_000)])).shape == "3 modes"
    piled = np.concatenate([rng.normal(0.2, 0.1, 10_000), 1 - rng.exponential(0.02, 5_000)])
    assert shape_of(piled).shape == "bimodal"  # mass against the end of the range is a mode
    small = rng.normal(0.2, 0.1, 60)  # of few pairs the histogram is a comb, and still no several modes
    assert shape_of(small).modes == 1
    assert shape_of(rng.uniform(0, 1, 50_000)).bimodality == pytest.approx(5 / 9, abs=0.01)
    assert shape_of([0.25] * 50 + [0.75] * 50).bimodality == pytest.approx(1)


def test_a_single_point_has_no_skew():
    found = shape_of([0.3] * 40)
    assert (found.sd, found.modes) == (pytest.approx(0, abs=1e-6), 1)
    assert math.isnan(found.skew)
    assert modes(*histogram([0.3] * 40)[:1], EDGES, 0.0) == 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.01, 1))
def test_quantiles_are_exact_to_a_bin(values, at):
    counts, _ = histogram(values)
    found = quantiles(counts, EDGES, (at,))[0]
    expected = np.quantile(values, at, method="inverted_cdf")
    assert abs(found - expected) <= 2 / BINS + 1e-9


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20)
)
def test_superiority_counts_draws(first, second):
    wins = np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(first, second)])
    assert superiority(np.bincount(first, minlength=10), np.bincount(second, minlength=10)) == pytest.approx(
        wins
    )


def test_intervals_are_those_of_one_sum_at_a_time():
    rng = np.random.default_rng(1)
    count, total = rng.integers(1, 4, 80).astype(float), rng.normal(1, 1, (80, 3))
    lo, hi = intervals(total, count)
    for column in range(3):
        expected = interval(total[:, column], count)
        assert (lo[column], hi[column]) == pytest.approx(expected, abs=0.02)
    np.testing.assert_array_equal(intervals(total[:1], count[:1])[0], total[0] / count[0])
    np.testing.assert_array_equal(intervals(total, count), intervals(total, count))


def test_intervals_in_parts_cover_the_mean(monkeypatch):
    monkeypatch.setattr("tokred.evaluation.metrics._BATCH_ENTRIES", 900)
    values = np.random.default_rng(0).normal(3, 1, (100, 1))
    lo, hi = intervals(values, np.ones(100))
    half = 1.96 * values.std() / 10
    assert lo[0] == pytest.approx(values.mean() - half, abs=0.03)
    assert hi[0] == pytest.approx(values.mean() + half, abs=0.03)
