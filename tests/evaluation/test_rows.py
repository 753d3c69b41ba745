"""Rows built from predictions and facts, without a model."""

import subprocess
import sys

import numpy as np
import pytest

from tokred.errors import TokredError
from tokred.evaluation.predictions import Evaluation
from tokred.evaluation.rows import build_rows
from tokred.tables.row import BASELINE, Row

LABELS = np.array([0, 1, 2, 3] * 5)


def run_facts(**changes):
    columns = {
        "model": "deit_s",
        "dataset": "photodigits",
        "split": "test",
        "limited": False,
        "weights": "some",
        "weights_hash": "w",
        "data_hash": "d",
        "img_size": 224,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "precision": "float32",
        "device": "cpu",
        "batch_size": 4,
        "seed": 0,
        "on_error": "",
        "versions": {},
        "published": None,
    }
    return columns | changes


def evaluation(wrong, labels=LABELS):
    """All images evaluated; the baseline misses one image, each method the first `wrong` of them."""
    made = Evaluation.empty(len(labels), wrong)
    made.done[:], made.labels[:] = True, labels
    for name, model in made.models.items():
        model.prediction[:], model.top5[:], model.kl[:] = LABELS, True, 0.5
        model.prediction[: wrong.get(name, 1)] = 9
        model.nll[:] = np.where(labels < 0, np.nan, 0.01 * (model.prediction != LABELS) + 0.5)
    return made


def rows_of(evaluation, **changes):
    facts = {BASELINE: Row(BASELINE, reduction=0.0)}
    facts |= {name: Row(name, budget=0.3, reduction=0.3) for name in evaluation.methods}
    rows = build_rows(run_facts(**changes), facts, evaluation.take(np.flatnonzero(evaluation.done)), {})
    return {row.method: row for row in rows}


def test_rows_by_hand():
    rows = rows_of(evaluation({"tome": 3, "topk": 19}))
    assert list(rows) == [BASELINE, "tome", "topk"]
    assert [row.top1 for row in rows.values()] == [95.0, 85.0, 5.0]
    assert [row.drop for row in rows.values()] == [0.0, 10.0, 90.0]
    assert rows["tome"].p_value == pytest.approx(2 * 0.5**2)  # two discordant pairs, one way
    assert (rows["tome"].agreement, rows["tome"].kl) == (0.9, 0.5)
    assert [row.best for row in rows.values()] == [False, True, False]
    assert rows[BASELINE].nll == pytest.approx(0.5 + 0.01 / 20)
    assert [row.nll_rise for row in rows.values()] == pytest.approx([0.0, 0.02 / 20, 0.18 / 20], rel=1e-4)
    assert rows["tome"].nll_rise_lo < rows["tome"].nll_rise < rows["tome"].nll_rise_hi
    none = ("p_value", "agreement", "kl", "drop_lo", "drop_hi", "nll_rise_lo", "nll_rise_hi")
    assert all(getattr(rows[BASELINE], column) is None for column in none)
    assert (rows["tome"].n_images, rows["tome"].n_failed, rows["tome"].model) == (20, 0, "deit_s")


def test_unreadable_images_are_left_out_or_count_as_wrong():
    made = evaluation({"tome": 3})
    made.remark({19: "damaged", 0: "damaged"}, {})
    skipped, counted = rows_of(made, on_error="skip")["tome"], rows_of(made, on_error="count-wrong")["tome"]
    assert (skipped.n_images, skipped.n_failed, skipped.top1) == (18, 2, pytest.approx(100 * 16 / 18))
    assert (counted.n_images, counted.n_failed, counted.top1) == (20, 2, 80.0)
    made.remark(dict.fromkeys(range(20), "damaged"), {})
    with pytest.raises(TokredError, match="None of the 20 images could be read: damaged"):
        rows_of(made)


def test_a_published_accuracy_is_compared_on_all_images_alone():
    made = evaluation({"tome": 3})
    rows = rows_of(made, published=90.0)
    assert [(row.published_top1, row.baseline_off) for row in rows.values()] == [(90.0, True), (None, True)]
    made.remark({5: "damaged"}, {})
    for changes in ({"limited": True}, {"on_error": "skip"}):
        rows = rows_of(made, published=90.0, **changes)
        assert [(row.published_top1, row.baseline_off) for row in rows.values()] == [(None, False)] * 2


def test_without_labels_the_dense_model_is_the_truth():
    rows = rows_of(evaluation({"tome": 3, "topk": 19}, np.full(20, -2)))
    assert [row.top1 for row in rows.values()] == [None] * 3
    assert (rows["tome"].agreement, rows["tome"].best) == (0.9, True)
    assert rows["tome"].agreement_lo < 0.9 < rows["tome"].agreement_hi
    assert rows[BASELINE].agreement is None
    assert (rows["tome"].nll, rows["tome"].nll_rise, rows["tome"].nll_rise_lo) == (None, None, None)


def test_a_method_that_fails_has_a_row_with_the_reason():
    made = evaluation({"tome": 3, "topk": 4})
    made.fail("topk", (8, "it broke"))
    row = rows_of(made)["topk"]
    assert (row.status, row.error, row.top1) == ("failed", "it broke", None)


@pytest.mark.slow
def test_reading_a_run_needs_no_torch():
    program = "import sys, tokred.evaluation.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
