"""`tokred fit` and `tokred train`, and the comparisons that take what they leave."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.command import run

from tokred.models import zoo

pytestmark = pytest.mark.usefixtures("shared_costs", "plain_outputs")

SMALL = ("--model", "deit_t", "--limit", "6", "--batch-size", "3", "--workers", "0", "--precision", "fp32")
ELSEWHERE = ("--methods", "lotm,sit", "--stages", "3 6 9")


@pytest.fixture
def few_validation_images(monkeypatch):
    monkeypatch.setattr("tokred.training.fit.data.VALIDATION", 4)


FIT = ("--model", "deit_t", "--images", "32", "--workers", "0", "--precision", "fp32")


@pytest.mark.slow
@pytest.mark.usefixtures("few_validation_images")
def test_what_fit_leaves_compare_takes(tmp_path):
    code, text = run("fit", "sit", *FIT, "--stages", "3 6 9", "--out", tmp_path / "fit")
    assert code == 0, text
    assert "Fitting the reducers of sit at layers 3 6 9 for any budget" in text
    assert "Adapter and card:" in text
    card = json.loads((tmp_path / "fit" / "deit_t-sit.json").read_text())
    assert card["command"].startswith("tokred fit sit --model deit_t")
    assert (card["images_seen"], card["training"], card["budget"]) == (32, "reducer", "any")
    code, _ = run("compare", *SMALL, *ELSEWHERE, "--adapters", tmp_path / "fit", "--out", tmp_path / "out")
    assert code == 0
    row = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("method").loc["sit"]
    assert (row.training, row.images_seen, row.status) == ("reducer", 32, "ok")
    code, text = run("fit", "sit", *FIT, "--stages", "3 6 9", "--out", tmp_path / "fit")
    assert code == 0
    assert "Resuming at image 32 of 32" in text


@pytest.mark.slow
@pytest.mark.usefixtures("few_validation_images")
def test_a_full_fit_is_a_row_of_its_own_kind(tmp_path):
    code, text = run("fit", "lotm", *FIT, "--full", "--budget", "0.3", "--out", tmp_path / "fit")
    assert code == 0, text
    code, _ = run(
        "compare",
        *SMALL,
        "--methods",
        "lotm,tome",
        "--no-controls",
        "--adapters",
        tmp_path / "fit",
        "--out",
        tmp_path / "out",
    )
    assert code == 0
    table = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("method")
    assert table.training.to_dict() == {"baseline": "none", "lotm": "full", "tome": "none"}
    code, text = run(
        "compare",
        *SMALL,
        "--budget",
        "0.2",
        "--methods",
        "lotm,tome",
        "--no-controls",
        "--adapters",
        tmp_path / "fit",
        "--out",
        tmp_path / "other",
    )
    assert code == 1
    assert "it was fitted for" in text
    assert np.isnan(pd.read_csv(tmp_path / "other" / "leaderboard.csv").set_index("method").top1["lotm"])
    code, text = run("compare", *SMALL, "--methods", "tome", "--adapters", tmp_path / "fit")
    assert code == 2
    assert "is for lotm, which is not compared" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit", "lotm", "--model", "deit_t"), "fit the whole model with --full"),
        (("fit", "sitt"), "Did you mean: sit"),
        (("fit", "sit", "--budget", "0.3", "--any-budget"), "not both"),
        (("fit", "sit", "--budget", "1.5", "--model", "deit_t"), "between 0 and 1"),
        (
            ("fit", "sit", "--set", "sinkhorn.epsilon=1"),
            "--set sinkhorn.epsilon is an option of another method; this command fits sit",
        ),
        (
            ("fit", "sinkhorn", "--model", "deit_t", "--set", "sinkhorn.epsilon=-1"),
            "must be a positive number",
        ),
        (("fit", "sit", "--recipe", "fit_nothing"), "Unknown configuration"),
        (("fit", "sit", "--data", "/nowhere", "--model", "deit_t", "--weights", "x"), "No weight file at x"),
        (("compare", "--model", "deit_t", "--adapters", "/nowhere"), "No adapter at /nowhere"),
    ],
)
def test_bad_input_to_a_fit_is_one_sentence(arguments, sentence, tmp_path):
    code, text = run(*arguments, *(("--out", tmp_path) if arguments[0] == "fit" else ()))
    assert code == 2, text
    assert sentence in " ".join(text.split())
    assert "Traceback" not in text


def test_train_checks_its_folder_first(tmp_path):
    (tmp_path / "file").write_text("")
    code, text = run("train", "--images", "32", "--out", tmp_path / "file" / "x")
    assert code == 2
    assert "cannot be written" in text
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    code, text = run("train", "--images", "32", "--out", tmp_path)
    assert code == 2
    assert "delete it to start over" in text


def test_train_from_the_command_line(tmp_path, monkeypatch):
    build = zoo.build
    monkeypatch.setattr(
        zoo, "build", lambda name, *a, **kw: build(name, *a, embed_dim=48, depth=1, num_heads=3, **kw)
    )
    monkeypatch.setitem(__import__("tokred.data.photodigits", fromlist=["x"]).SPLIT_IMAGES, "validation", 4)
    monkeypatch.setitem(__import__("tokred.data.photodigits", fromlist=["x"]).SPLIT_IMAGES, "test", 4)
    arguments = (
        "train",
        "--model",
        "deit_t",
        "--images",
        "64",
        "--out",
        tmp_path,
        "--workers",
        "0",
        "--precision",
        "fp32",
    )
    code, text = run(*arguments)
    assert code == 0, text
    card = json.loads((tmp_path / "deit_t.json").read_text())
    assert card["images_seen"] == 64
    assert 0 <= card["test_top1"] <= 100
    code, text = run(*arguments)
    assert "Resuming at image 64 of 64" in text
    code, text = run(*arguments, "--seed", "3")
    assert code == 2
    assert "differs in seed" in text
