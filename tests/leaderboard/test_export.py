"""Exports of boards for timm and other readers."""

import csv
import io

from helpers.boards import CONTROL, made, outcome
from helpers.command import run

from tokred.leaderboard import add
from tokred.leaderboard.export import TIMM_BENCHMARK, TIMM_RESULTS
from tokred.tables.row import BASELINE, COLUMNS


def cells_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_exports_for_timm(tmp_path):
    board = tmp_path / "b.csv"
    timed = {
        "lotm": {"images_per_s": 20.0, "latency_ms": 800.0, "top5": 100.0},
        "topk": {"limited": True, "n_images": 200},
    }
    add(board, made(tmp_path, rows={**CONTROL, **timed}))
    code, text = run("leaderboard", "export", board, "--format", "timm")
    assert code == 0
    lines = cells_of(text)
    header = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation"
    assert tuple(lines[0]) == TIMM_RESULTS == tuple(header.split(","))
    named = {line["model"]: line for line in lines}
    tag = "deit_small_patch16_224.fb_in1k"
    assert set(named) == {tag, f"{tag}+lotm", f"{tag}+tome", f"{tag}+random"}  # the marked row is left out
    assert tuple(named[f"{tag}+lotm"].values())[1:] == (
        "224",
        "92.500",
        "7.500",
        "100.000",
        "0.000",
        "22.05",
        "0.9",
        "bicubic",
    )
    lines = cells_of(run("leaderboard", "export", board, "--format", "timm-benchmark")[1])
    header = "model,infer_img_size,infer_samples_per_sec,infer_step_time,infer_batch_size,param_count,"
    header += "infer_gmacs,infer_macts"
    assert tuple(lines[0]) == TIMM_BENCHMARK == tuple(header.split(","))
    assert [tuple(line.values()) for line in lines] == [
        (f"{tag}+lotm", "224", "20.00", "800.000", "16", "22.05", "3.20", "")
    ]
    add(
        board,
        made(
            tmp_path,
            {"lotm": outcome(170), "smaller": outcome(160)},
            "more",
            rows={"smaller": {"control": True, "budget": None}},
            budget=0.5,
            reduction=0.5,
        ),
    )
    named = [line["model"] for line in cells_of(run("leaderboard", "export", board, "--format", "timm")[1])]
    assert f"{tag}+lotm@0.3" in named
    assert f"{tag}+lotm@0.5" in named
    assert f"{tag}+smaller" in named
    assert len(named) == len(set(named))


def test_other_exports_and_what_is_wrong(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path))
    lines = cells_of(run("leaderboard", "export", board)[1])
    assert tuple(lines[0])[: len(COLUMNS)] == COLUMNS
    assert [(line["method"], line["rank"], line["tied"]) for line in lines] == [
        (BASELINE, "", ""),
        ("lotm", "1", "1"),
        ("tome", "1", "1"),
        ("topk", "3", "0"),
        ("random", "", ""),
    ]
    assert r"\begin{tabular}" in run("leaderboard", "export", board, "--format", "latex")[1]
    code, _ = run("leaderboard", "export", board, "--format", "markdown", "--out", tmp_path / "x.md")
    assert code == 0
    assert "| 1 | lotm |" in (tmp_path / "x.md").read_text()
    assert (
        run("leaderboard", "export", tmp_path / "run", "--format", "timm")[0] == 0
    )  # a run's folder is a board of its own
    for arguments, match in [
        ((board, "--format", "timn"), "Did you mean"),
        ((board, "--format", "timm-benchmark"), "No row of this board has a speed to export"),
        ((tmp_path / "none.csv",), "There is no leaderboard at"),
    ]:
        code, text = run("leaderboard", "export", *arguments)
        assert (code, match in text) == (2, True), text
