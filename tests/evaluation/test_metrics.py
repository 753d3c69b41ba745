"""Statistics against closed forms and SciPy."""

import math
import time

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.metrics import log_loss

from tokred.evaluation.metrics import interval, mcnemar, mean_test, rise_intervals, score
from tokred.evaluation.predictions import Predictions, finite


def test_outcomes_from_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    dense = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 9.0], [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    outcomes = Predictions.empty(3)
    outcomes.put(np.array([2, 0]), logits, torch.tensor([0, 0]), dense)
    assert outcomes.prediction.tolist() == [0, -1, 5]
    assert outcomes.top5.tolist() == [True, False, False]
    p, q = (torch.softmax(t[0].double(), 0) for t in (dense, logits))
    assert outcomes.kl[2] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)
    assert outcomes.kl[0] == pytest.approx(0, abs=1e-6)


def made(prediction, nll=None):
    n = len(prediction)
    nll = np.full(n, np.nan, dtype=np.float32) if nll is None else np.asarray(nll, dtype=np.float32)
    return Predictions(np.asarray(prediction), np.ones(n, dtype=bool), np.zeros(n, dtype=np.float32), nll)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_nll_is_that_of_scipy_and_scikit_learn(dtype, scale):
    logits = (scale * torch.randn(40, 7, generator=torch.Generator().manual_seed(0))).to(dtype)
    labels = torch.arange(40) % 7
    predictions = Predictions.empty(40)
    predictions.put(np.arange(40), logits, labels, logits)
    log = special.log_softmax(logits.double().numpy(), axis=1)
    np.testing.assert_allclose(predictions.nll, -log[np.arange(40), labels], rtol=1e-5, atol=1e-5)
    scores = score(predictions, predictions, labels.numpy(), np.arange(40))
    if scale == 1:  # scikit-learn clips probabilities
        assert scores.nll == pytest.approx(log_loss(labels, np.exp(log)), rel=1e-5)
    assert scores.nll_rise == 0


def test_nll_where_there_is_no_label_or_no_prediction():
    predictions = Predictions.empty(4)
    predictions.put(np.arange(3), torch.zeros(3, 5), torch.tensor([-2, 4, 5]), torch.zeros(3, 5))
    assert np.isnan(predictions.nll).tolist() == [True, False, True, True]
    assert predictions.nll[1] == pytest.approx(math.log(5))
    dense = made([0, 0, -1], [0.5, 0.5, np.nan])
    method = made([0, 1, -1], [0.5, 1.5, np.nan])
    scores = score(method, dense, np.zeros(3, dtype=int), np.arange(3))
    assert (scores.nll, scores.nll_rise) == (1.0, 0.5)
    older = score(made([0, 1, 0]), made([0, 0, 0]), np.zeros(3, dtype=int), np.arange(3))
    assert (older.nll, older.nll_rise) == (None, None)
    assert set(rise_intervals({"a": method, "older": made([0, 1, 0])}, dense, np.arange(3))) == {"a"}
    assert rise_intervals({"older": made([0])}, made([0]), np.arange(1)) == {}


def test_the_interval_of_a_rise_is_the_paired_bootstrap_over_groups():
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 60, 200))
    dense, extra = rng.exponential(0.3, 200), rng.normal(0.02, 0.1, 200)
    models = {"a": made(np.zeros(200), dense + extra), "b": made(np.zeros(200), dense + 2 * extra)}
    ends = rise_intervals(models, made(np.zeros(200), dense), groups)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    means = []
    for _ in range(4000):  # image by image
        images = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        means.append(extra[images].mean())
    np.testing.assert_allclose(ends["a"], np.percentile(means, [2.5, 97.5]), atol=2e-3)
    np.testing.assert_allclose(ends["b"], 2 * np.array(ends["a"]), rtol=1e-5)  # of the same resamples


def test_the_test_of_a_mean_is_the_paired_t_test_and_counts_groups():
    rng = np.random.default_rng(0)
    a, b = rng.exponential(size=(2, 50))
    assert mean_test(a - b, np.ones(50)) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    totals = np.bincount(np.repeat(np.arange(50), 4), weights=np.repeat(a - b, 4))
    assert mean_test(totals, np.full(50, 4.0)) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert mean_test(np.zeros(9), np.ones(9)) == mean_test(np.ones(1), np.ones(1)) == 1.0
    assert mean_test(np.ones(9), np.ones(9)) == 0.0


def test_scores_by_hand():
    labels = np.zeros(10, dtype=int)
    dense, method = made([0] * 9 + [1]), made([0] * 7 + [1, 1, 1])
    scores = score(method, dense, labels, np.arange(10))
    assert (scores.top1, scores.drop, scores.agreement) == (70.0, pytest.approx(20.0), 0.8)
    assert scores.p_value == pytest.approx(2 * 0.5**2)  # two discordant pairs, both lost
    assert scores.drop_lo <= 20 <= scores.drop_hi


def test_mcnemar_is_the_binomial_of_discordant_pairs():
    lost = np.array([1] * 12 + [-1] * 3 + [0] * 85)
    exact = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert mcnemar(lost) == pytest.approx(exact)
    assert mcnemar(np.zeros(5)) == 1.0


def test_images_of_one_source_count_once():
    """Four copies of the same evidence must not look four times as sure."""
    lost = np.array([1, 1, 1, 0, 0, -1] * 5)
    labels, dense_right = np.zeros(120, dtype=int), np.repeat(lost >= 0, 4)
    dense = made(np.where(dense_right, 0, 1))
    method = made(np.where(np.repeat(lost, 4) == 1, 1, 0))
    grouped = score(method, dense, labels, np.repeat(np.arange(30), 4))
    alone = score(method, dense, labels, np.arange(120))
    assert grouped.p_value == pytest.approx(mcnemar(lost))
    assert alone.p_value < grouped.p_value
    assert grouped.drop_hi - grouped.drop_lo > 1.6 * (alone.drop_hi - alone.drop_lo)


def test_interval_covers_like_the_normal_approximation():
    rng = np.random.default_rng(0)
    correct = (rng.random(1000) < 0.8).astype(float)
    low, high = interval(correct, np.ones(1000))
    half = stats.norm.ppf(0.975) * np.sqrt(correct.mean() * (1 - correct.mean()) / 1000)
    assert low == pytest.approx(correct.mean() - half, abs=3e-3)
    assert high == pytest.approx(correct.mean() + half, abs=3e-3)
    assert (low, high) == interval(correct, np.ones(1000))
    assert interval(np.array([3.0]), np.array([4.0])) == (0.75, 0.75)


@pytest.mark.parametrize("distinct", [False, True])
def test_interval_is_the_bootstrap_over_groups(distinct):
    rng = np.random.default_rng(0)
    count = rng.integers(1, 5, 200).astype(float)
    total = rng.normal(size=200) if distinct else rng.integers(-1, 2, 200) * count
    draws = rng.integers(200, size=(20_000, 200))  # group by group
    expected = np.percentile(total[draws].sum(1) / count[draws].sum(1), [2.5, 97.5])
    np.testing.assert_allclose(interval(total, count), expected, atol=0.01)


def test_interval_of_fifty_thousand_images_takes_no_time():
    lost = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 50_000, p=[0.02, 0.94, 0.04])
    start = time.process_time()
    low, high = interval(lost, np.ones(50_000))
    assert time.process_time() - start < 0.5  # a sweep over ImageNet needs some two hundred
    half = stats.norm.ppf(0.975) * lost.std() / np.sqrt(50_000)
    np.testing.assert_allclose([low, high], [lost.mean() - half, lost.mean() + half], atol=5e-5)


def test_finite():
    assert finite(torch.zeros(3))
    assert not finite(torch.tensor([1.0, math.nan]))
    assert not finite(torch.tensor([1.0, math.inf]))
