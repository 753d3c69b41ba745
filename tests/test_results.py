"""What a run leaves behind."""

import json

import numpy as np
import pandas as pd
import pytest

from tokred.errors import TokredError
from tokred.results import BASELINE, COLUMNS, SCHEMA, Folder, Row, csv_text, display, latex, markdown, rank, report

DESIGN_COLUMNS = """
method options control model dataset split n_images n_failed limited budget reduction gflops reducer_gflops protocol stages tokens knob
top1 top1_lo top1_hi top5 drop drop_lo drop_hi p_value agreement kl images_per_s latency_ms speedup promise_share peak_mem_mb training
images_seen weights weights_hash data_hash img_size crop_pct interpolation precision device batch_size seed status error tokred torch
timm fvcore commit date
""".split()

ROWS = [
    Row("lotm", budget=0.3, reduction=0.3005, gflops=3.22, top1=80.0, drop=2.0, drop_lo=1.0, drop_hi=3.0, training="none", stages="4 7 11"),
    Row(BASELINE, gflops=4.6, top1=82.0, reduction=0.0, training="none"),
    Row("tome", budget=0.3, reduction=0.3001, gflops=3.2, top1=81.0, drop=1.0, drop_lo=0.5, drop_hi=1.5, training="none"),
    Row("a|b", status="failed", error="100 % <b>broken</b> & so_on", control=True),
    Row(
        "evit",
        budget=0.3,
        reduction=0.3005,
        gflops=3.22,
        top1=80.0,
        drop=2.0,
        drop_lo=1.0,
        drop_hi=3.0,
        training="none",
        limited=True,
        n_images=7,
    ),
]


def test_columns_are_fixed():
    assert list(COLUMNS) == [*DESIGN_COLUMNS, "adapter", "unfitted", "fitted_here", "schema"]  # only ever appended


def test_rank():
    assert [row.method for row in rank(ROWS)] == [BASELINE, "tome", "evit", "lotm", "a|b"]


def test_csv_round_trip(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(csv_text(ROWS))
    table = pd.read_csv(path)
    assert list(table.columns) == list(COLUMNS)
    assert table.top1.tolist()[:3] == [80.0, 82.0, 81.0]
    assert np.isnan(table.latency_ms).all()  # an empty cell is "not measured"
    assert table.control.tolist() == [False, False, False, True, False]
    assert table.stages[0] == "4 7 11"
    assert table.error[3] == ROWS[3].error
    assert (table.schema == SCHEMA).all()


def test_text_is_escaped():
    assert "a\\|b" in markdown(ROWS)
    assert r"100 \% <b>broken</b> \& so\_on" in latex(ROWS)
    page = report(ROWS, "<title>", {"path": "</pre><script>"})
    assert "<b>broken" not in page
    assert "<script>" not in page
    assert "&lt;title&gt;" in page


def test_display_marks_controls_limits_failures_and_gaps():
    assert "control" in display(ROWS[3])[-1]
    assert "failed: 100 %" in display(ROWS[3])[-1]
    assert "first 7 images only" in display(ROWS[4])[-1]
    assert "0.40 points over" in display(Row("x", budget=0.3, reduction=0.304))[-1]


def test_a_folder_belongs_to_one_configuration(tmp_path):
    folder = Folder(tmp_path / "run", {"budget": 0.3, "seed": 0})
    folder.write("run.json", json.dumps({"configuration": {"budget": 0.3, "seed": 0}}))
    folder.write("leaderboard.csv", "old")
    Folder(tmp_path / "run", {"seed": 0, "budget": 0.3})
    with pytest.raises(TokredError, match=r"another budget, seed; choose another folder with --out"):
        Folder(tmp_path / "run", {"budget": 0.4, "seed": 1})
    assert (tmp_path / "run" / "leaderboard.csv").read_text() == "old"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(TokredError, match="not a run of tokred"):
        Folder(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(TokredError, match="cannot be written"):
        Folder(tmp_path / "file" / "below", {})


def test_writing_is_one_step(tmp_path, monkeypatch):
    folder = Folder(tmp_path, {})
    folder.write("leaderboard.csv", "first")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(TokredError, match="No space left on device"):
        folder.write("leaderboard.csv", "second")
    assert (tmp_path / "leaderboard.csv").read_text() == "first"


def test_predictions(tmp_path):
    Folder(tmp_path, {}).write_predictions({"labels": np.arange(3), "lotm/prediction": np.arange(3)})
    assert np.load(tmp_path / "predictions.npz")["lotm/prediction"].tolist() == [0, 1, 2]
