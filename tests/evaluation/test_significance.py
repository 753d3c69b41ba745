"""Ranks and their tests against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokred.evaluation.metrics import mean_test
from tokred.evaluation.significance import (
    ALPHA,
    better,
    holm,
    ladder,
    paired,
    paired_nll,
    ranks,
    unpaired,
)


def exact(a, b, groups):
    """The sign test over groups, counted out."""
    plus = minus = 0
    for group in set(groups):
        net = sum(int(x) - int(y) for x, y, g in zip(a, b, groups, strict=True) if g == group)
        plus, minus = plus + (net > 0), minus + (net < 0)
    n, k = plus + minus, min(plus, minus)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if plus != minus else 1.0


def p_value(a, b, groups=None):
    """Of the paired test, in the direction that it takes."""
    return min(paired([1, 0], [a, b], groups)(0, 1), paired([0, 1], [a, b], groups)(1, 0))


def test_the_paired_test_counts_groups():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b, groups = rng.random(60) < 0.8, rng.random(60) < 0.6, rng.integers(0, 25, 60)
        assert p_value(a, b, groups) == pytest.approx(exact(a, b, groups))
        assert p_value(a, b) == pytest.approx(exact(a, b, range(60)))
        assert p_value(a, b, groups) == p_value(b, a, groups)
    assert p_value(a, a) == 1.0


def test_the_paired_test_of_nll():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, 60)
    nll = rng.exponential(size=(2, 60)) + np.array([[0.0], [0.5]])
    totals = [np.array([row[groups == g].sum() for g in np.unique(groups)]) for row in nll]
    counts = np.array([(groups == g).sum() for g in np.unique(groups)], dtype=float)
    test = paired_nll(nll, groups)
    assert test(0, 1) == pytest.approx(mean_test(totals[1] - totals[0], counts))
    assert test(1, 0) == 1.0
    assert paired_nll(nll, None)(0, 1) == pytest.approx(stats.ttest_rel(*nll).pvalue)
    unread = np.concatenate([nll, np.full((2, 3), np.nan)], axis=1)
    assert paired_nll(unread, np.append(groups, [0, 1, 2]))(0, 1) == pytest.approx(test(0, 1))


def test_better_corrects_for_all_pairs_and_all_tests():
    rng = np.random.default_rng(0)
    values = [rng.permutation(np.linspace(0.002, 0.02, 6)) for _ in range(2)]
    pairs = list(itertools.combinations(range(4), 2))

    def test_of(p_values):
        known = dict(zip(pairs, p_values, strict=True))
        return lambda i, j: known.get((i, j), 1.0)

    shown = better([test_of(row) for row in values], 4)
    adjusted = holm(np.concatenate(values)).reshape(2, 6)
    assert 0 < (adjusted <= ALPHA).sum() < 12
    for place, row in enumerate(adjusted):
        assert shown[place] == {pair for pair, p in zip(pairs, row, strict=True) if p <= ALPHA}
    assert better([lambda i, j: 0.0 if (i, j) == (1, 0) else 1.0], 2) == [{(1, 0)}]
    assert better([lambda i, j: 0.0], 1) == [set()]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    for alpha in (0.001, 0.01, 0.05, 0.3, 0.9):
        rejected, m = set(), len(p_values)
        for step, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
            if p_values[index] * (m - step) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def brute(top1s, correct, groups, alpha=0.05):
    """The rule as the module states it, by plain loops."""
    left, place, found = set(range(len(top1s))), 1, {}
    while left:
        best = max(top1s[i] for i in left)
        leader = min((i for i in left if top1s[i] == best), key=lambda i: np.packbits(correct[i]).tobytes())
        others = sorted(left - {leader})
        tests = []
        for i in others:
            ahead = [
                sum(int(correct[leader][n]) - int(correct[i][n]) for n in np.flatnonzero(groups == g))
                for g in np.unique(groups)
            ]
            agree = top1s[i] < best and sum(x > 0 for x in ahead) > sum(x < 0 for x in ahead)
            tests.append((exact(correct[leader], correct[i], groups) if agree else 1.0, i))
        beaten, level = set(), 0.0
        for step, (p, i) in enumerate(sorted(tests)):
            level = max(level, p * (len(tests) - step))
            if level <= alpha:
                beaten.add(i)
        limit = max((top1s[i] for i in beaten), default=-1)
        sharing = {i for i in left if top1s[i] > limit}
        found |= dict.fromkeys(sharing, place)
        place, left = place + len(sharing), left - sharing
    return [found[i] for i in range(len(top1s))]


def drawn(seed, m=6, n=80):
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    correct = np.stack([hard + rng.normal(0, 0.15, n) < skill for skill in rng.uniform(0.3, 0.95, m)])
    correct[-1] = correct[0]  # one twice
    groups = np.sort(rng.integers(0, n, n)) if seed % 2 else np.arange(n)
    return [float(100 * row.mean()) for row in correct], correct, groups


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_ranks_follow_the_rule(seed):
    top1s, correct, groups = drawn(seed)
    found = ranks(top1s, correct, groups)
    assert found == brute(top1s, correct, groups)
    for i, j in itertools.combinations(range(len(found)), 2):  # ranks never contradict top-1
        assert (top1s[i] > top1s[j]) <= (found[i] <= found[j])
        assert (top1s[i] == top1s[j]) <= (found[i] == found[j])
    order = np.random.default_rng(seed + 100).permutation(len(found))
    assert ranks([top1s[i] for i in order], correct[order], groups) == [found[i] for i in order]


def test_some_draws_separate_and_some_do_not():
    depths = {len(set(ranks(*drawn(seed)))) for seed in range(30)}
    assert {2, 3, 4} <= depths  # so that the test above compares more than ones


def test_a_row_between_two_that_are_told_apart():
    """B is not told from A, C is; D, not told from A by a test of its own, cannot stand before C."""
    beaten = {0: {2}, 2: set()}
    assert ladder([90, 89, 88, 87], lambda row, others: [other in beaten[row] for other in others]) == [
        1,
        1,
        3,
        3,
    ]
    assert ladder([90, 88, 88], lambda row, others: [row == 0 and other == 2 for other in others]) == [
        1,
        2,
        2,
    ]  # equal top-1, equal rank
    assert ladder([], lambda row, others: []) == []
    assert ladder([5.0], lambda row, others: []) == [1]


def test_a_test_that_speaks_against_top1_separates_nothing():
    groups = np.array([0] * 40 + list(range(1, 13)))
    a, b = np.array([True] * 40 + [False] * 12), np.array([False] * 40 + [True] * 12)
    assert exact(a, b, groups) < 0.05  # B wins twelve groups of thirteen, A most images
    assert ranks([a.mean(), b.mean()], [a, b], groups) == [1, 1]
    assert paired([0.9, 0.9], [b, a], groups)(0, 1) == 1.0


def test_unpaired_is_the_normal_test_of_two_shares():
    n, a, b = 1000, 0.90, 0.87

    def interval(p):
        half = stats.norm.ppf(0.975) * math.sqrt(p * (1 - p) / n)
        return 100 * (p - half), 100 * (p + half)

    z = (a - b) / math.sqrt(a * (1 - a) / n + b * (1 - b) / n)
    assert unpaired(100 * a, interval(a), 100 * b, interval(b)) == pytest.approx(2 * stats.norm.sf(z))
    assert unpaired(90, (math.nan, math.nan), 10, (9, 11)) == 1.0
    assert unpaired(90, (90, 90), 10, (10, 10)) == 1.0
