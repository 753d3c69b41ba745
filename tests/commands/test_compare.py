"""`tokred compare` and `tokred sweep`: whole comparisons, what they leave behind, and bad input."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.command import run

from tokred.core import registry

SMALL = ("--model", "deit_t", "--limit", "6", "--batch-size", "3", "--workers", "0", "--precision", "fp32")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    code, text = run("compare", *SMALL, "--out", out)
    assert code == 0, text
    return out, text


FEW = (*SMALL, "--methods", "lotm,topk", "--no-controls")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A comparison of two methods without controls."""
    out = tmp_path_factory.mktemp("few") / "out"
    code, text = run("compare", *FEW, "--out", out)
    assert code == 0, text
    return out, text


@pytest.mark.slow
def test_compare_prints_where_the_data_and_weights_come_from_first(comparison):
    first = comparison[1].splitlines()[0]
    assert first.startswith("Data: the embedded benchmark PhotoDigits, test split, the first 6 images. ")
    assert " Weights: tokred's deit_t" in first


@pytest.mark.slow
def test_leaderboard_has_the_baseline_and_every_method(comparison):
    table = pd.read_csv(comparison[0] / "leaderboard.csv")
    assert table.method[0] == "baseline"
    assert set(table.method[1:]) == {*registry.select(), "lowres"}
    assert (table.status == "ok").all()
    methods = table[1:]
    within = (methods.reduction >= 0.3) & (methods.reduction <= 0.301)
    assert list(methods.method[~within]) == ["lowres"]  # whole rows of patches are coarse steps
    assert (methods.top1.diff().dropna() <= 0).all()  # best first
    learned = methods.method.isin(["patchmerger", "sinkhorn", "sit", "dynamicvit"])
    assert (methods.training[learned] == "reducer").all()
    assert (methods.images_seen[learned] > 0).all()
    assert (methods.training[~learned] == "none").all()
    run_json = json.loads((comparison[0] / "run.json").read_text())
    assert {name: card["images_seen"] for name, card in run_json["adapters"].items()} == methods[
        learned
    ].set_index("method").images_seen.to_dict()
    assert table.limited.all()
    assert (table.n_images == 6).all()


@pytest.mark.slow
def test_everything_else_it_leaves(comparison):
    out = comparison[0]
    visible = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    tables = {"leaderboard.csv", "table.md", "table.tex", "run.json", "config.yaml", "predictions.npz"}
    assert visible == tables | {"report.html", "pareto.svg", "pareto.png", "maps.npz"}
    run_json = json.loads((out / "run.json").read_text())
    assert run_json["configuration"]["model"] == "deit_t"
    arrays = np.load(out / "predictions.npz")
    table = pd.read_csv(out / "leaderboard.csv").set_index("method")
    for method in ("baseline", *registry.select()):
        top1 = 100 * (arrays[f"{method}/prediction"] == arrays["labels"]).mean()
        assert table.top1[method] == pytest.approx(top1)


@pytest.mark.slow
def test_a_row_is_the_same_again_and_whatever_else_is_compared(comparison, few):
    whole = pd.read_csv(comparison[0] / "leaderboard.csv").set_index("method")
    part = pd.read_csv(few[0] / "leaderboard.csv").set_index("method")
    relative = ["best", "unbeaten"]  # to the other rows
    pd.testing.assert_frame_equal(
        whole.loc[part.index].drop(columns=relative), part.drop(columns=relative), check_dtype=False
    )


@pytest.mark.slow
def test_a_finished_run_is_shown_again_without_evaluating_anything(few, monkeypatch):
    before = (few[0] / "leaderboard.csv").read_bytes()
    monkeypatch.setattr("tokred.evaluation.engine.Pass.run", None)
    code, text = run("compare", *FEW, "--out", few[0])
    assert code == 0, text
    assert "was finished on" in text
    assert few[1][few[1].index("deit_t on") : few[1].index("Report, ")] in text
    assert (few[0] / "leaderboard.csv").read_bytes() == before


@pytest.mark.slow
def test_a_changed_comparison_starts_anew_beside_the_old_one(comparison, tmp_path):
    shutil.copytree(comparison[0], tmp_path / "out")
    before = (comparison[0] / "leaderboard.csv").read_bytes()
    code, text = run("compare", *SMALL, "--methods", "lotm", "--out", tmp_path / "out", "--seed", "7")
    assert code == 0, text
    assert "differs in adapters, methods, options, seed. It was moved to" in " ".join(text.split())
    (old,) = (tmp_path / "out" / "previous").iterdir()
    assert (old / "leaderboard.csv").read_bytes() == before
    assert set(pd.read_csv(tmp_path / "out" / "leaderboard.csv").method) == {
        "baseline",
        "lotm",
        "random",
        "lowres",
    }


@pytest.mark.slow
def test_a_sweep_is_one_pass_and_marks_what_cannot_be_reached(few, tmp_path):
    code, text = run("sweep", *FEW, "--budgets", "0.3,0.55", "--out", tmp_path / "sweep")
    assert code == 0, text
    table = pd.read_csv(tmp_path / "sweep" / "leaderboard.csv")
    assert sorted(zip(table.method[1:], table.budget[1:], table.status[1:], strict=True)) == [
        ("lotm", 0.3, "ok"), ("lotm", 0.55, "unreachable"), ("topk", 0.3, "ok"), ("topk", 0.55, "ok")
    ]  # fmt: skip
    assert "can save at most" in table.error[table.status == "unreachable"].item()
    one = pd.read_csv(few[0] / "leaderboard.csv").set_index("method")
    swept = table[(table.budget == 0.3) | (table.method == "baseline")].set_index("method").loc[one.index]
    pd.testing.assert_frame_equal(swept, one, check_dtype=False)
    line = next(line for line in text.splitlines() if "lotm" in line)
    assert line.split()[1:3] == [f"{one.top1['lotm']:.2f}", "-"]


@pytest.mark.slow
def test_a_method_that_cannot_be_matched_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    def explode(self, view):
        raise RuntimeError("boom")

    monkeypatch.setattr(registry.get("topk"), "forward", explode)
    code, text = run("compare", *SMALL, "--methods", "topk,lotm", "--out", tmp_path / "out")
    assert code == 1
    assert any("topk" in line and "boom" in line for line in text.splitlines())
    table = pd.read_csv(tmp_path / "out" / "leaderboard.csv", index_col="method")
    assert list(table.status[["lotm", "topk"]]) == ["ok", "failed"]
