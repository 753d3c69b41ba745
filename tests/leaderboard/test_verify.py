"""Rows run again: honest ones are confirmed to the last bit, forged ones are named."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.command import run

from tokred.api import compare
from tokred.errors import TokredError
from tokred.evaluation.comparison import Job
from tokred.evaluation.rows import build_rows
from tokred.evaluation.run_folder import read_run
from tokred.leaderboard import add, read
from tokred.leaderboard.publish import ranked_rows as load
from tokred.leaderboard.verify import rerun, verify
from tokred.leaderboard.verify.rerun import Again, Places, batches, job_of
from tokred.tables.row import Row, to_csv

pytestmark = [
    pytest.mark.slow,  # whole runs of the command line
    pytest.mark.usefixtures("shared_costs", "plain_outputs"),
]

CSV = "leaderboard.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of twelve images in batches of four, and a swept one with controls."""
    root = tmp_path_factory.mktemp("runs")
    settings = {"methods": ("lotm", "topk"), "batch_size": 4, "precision": "fp32", "workers": 0}
    compare("deit_t", 0.3, root / "one", limit=12, controls=False, **settings)
    compare(
        "deit_t",
        (0.2, 0.4),
        root / "two",
        limit=6,
        methods=("lotm",),
        batch_size=4,
        precision="fp32",
        workers=0,
    )
    return root


@pytest.fixture(scope="module", autouse=True)
def _jobs():
    """What a configuration comes to is always the same, and so are the same batches evaluated again."""
    known, evaluated, evaluate = {}, {}, rerun.run

    def run_once(job, evidence, chosen, progress):
        stored = ((one.name, one.prediction.tobytes(), one.places.tobytes()) for one in evidence)
        key = (id(job), *stored, *chosen)
        if key not in evaluated:
            evaluated[key] = evaluate(job, evidence, chosen, progress)
        return evaluated[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rerun,
            "Job",
            lambda config: known.get(repr(config)) or known.setdefault(repr(config), Job(config)),
        )
        patch.setattr(rerun, "run", run_once)
        yield


@pytest.fixture
def one(made, tmp_path):
    return shutil.copytree(made / "one", tmp_path / "one")


def forge(folder, method, **cells):
    rows = [replace(row, **cells) if row.method == method else row for row in read(folder / CSV)]
    (folder / CSV).write_text(to_csv(rows))


def follow(folder):
    """A CSV that follows from the predictions in the folder."""
    run = read_run(folder)
    candidates = {name: Row(**columns) for name, columns in run.about["candidates"].items()}
    rows = build_rows(run.about["facts"], candidates, run.predictions, run.about["speeds"])
    (folder / CSV).write_text(to_csv(rows))


def tamper(folder, change):
    with np.load(folder / "predictions.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folder / "predictions.npz", **arrays)


def verdicts(found):
    return {check.row.row.method: check.verdict for check in found.checks}


def test_an_honest_run_is_confirmed_and_says_so(one):
    found = verify(one, sample=8)
    assert found.confirmed
    assert verdicts(found) == dict.fromkeys(("baseline", "lotm", "topk"), "confirmed, to the last bit")
    assert {(check.images, check.agreeing, check.ties) for check in found.checks} == {(8, 8, 0)}
    for check in found.checks:
        assert check.top1[0] == check.top1[1]
    noted = json.loads((one / "verified.json").read_text())
    assert set(noted) == {"baseline", "lotm", "topk"}
    assert (noted["lotm"]["images"], noted["lotm"]["confirmed"], noted["lotm"]["torch"]) == (
        8,
        True,
        torch.__version__,
    )
    assert all(row.verified["confirmed"] for row in load(one / CSV))


def test_one_method_alone_gives_the_same_bits(one):
    """LOTM looks at no attention; the other method's taps stay in, as in the run."""
    found = verify(one, ["lotm"], sample=4)
    assert verdicts(found) == {"lotm": "confirmed, to the last bit"}


@pytest.mark.parametrize("n", [1, 16, 100, 101])
def test_batches_are_whole_ones_of_the_run(n):
    for sample in (1, 16, 40, 1000):
        chosen = batches(n, 16, sample, seed=3)
        assert all(batch.start % 16 == 0 and batch.stop == min(n, batch.start + 16) for batch in chosen)
        assert len({batch.start for batch in chosen}) == len(chosen)
        images = sum(map(len, chosen))
        assert min(sample, n) <= images < sample + 16
    assert len({tuple(batches(1600, 16, 32, seed)) for seed in range(5)}) > 1


def test_a_forged_csv_is_named_without_running_anything(one, monkeypatch):
    forge(one, "lotm", top1=99.5, drop=-8.0)
    monkeypatch.setattr("tokred.leaderboard.verify.rerun.run", lambda *_: pytest.fail("ran"))
    found = verify(one, ["lotm"])
    assert not found.confirmed
    for wrong in ("top1 99.5 instead of", "drop -8 instead of"):
        assert wrong in verdicts(found)["lotm"]


def test_forged_predictions_are_found(one):
    """Predictions that the model does not make, and a CSV that follows from them."""

    def change(arrays):
        arrays["topk/prediction"][:4] = (arrays["topk/prediction"][:4] + 1) % 10

    tamper(one, change)
    follow(one)
    found = verify(one, sample=12)
    assert verdicts(found) == {
        "baseline": "confirmed, to the last bit",
        "lotm": "confirmed, to the last bit",
        "topk": "4 of 12 predictions differ by more than a near tie",
    }
    assert not found.confirmed
    assert "not confirmed" in next(row for row in load(one / CSV) if row.row.method == "topk").exclusions[0]


def test_forged_labels_and_losses_are_found(one):
    """Labels that make LOTM wrong where it was right, KL and NLL of nought, and a CSV that follows."""

    def change(arrays):
        right = np.flatnonzero(arrays["lotm/prediction"] == arrays["labels"])[:2]
        arrays["labels"][right] = (arrays["labels"][right] + 1) % 10
        arrays["topk/kl"][:] = 0
        arrays["topk/nll"][:] = 0

    tamper(one, change)
    follow(one)
    assert not any(row.disputed for row in load(one / CSV))  # nothing on paper speaks against it
    found = verdicts(verify(one, sample=12))
    assert "2 of 12 labels differ" in found["lotm"]
    assert re.search("the KL of [0-9]+ of 12 images differs", found["topk"])
    assert re.search("the NLL of [0-9]+ of 12 images differs", found["topk"])


def test_forged_flops_are_found(one):
    forge(one, "lotm", gflops=0.5)
    assert verdicts(verify(one, ["lotm"], sample=4))["lotm"].startswith("gflops 0.5 instead of 0.88")


@pytest.mark.parametrize(
    "cells",
    [
        {"limited": False},
        {"top1_lo": 90.0, "top1_hi": 92.0},
        {"drop_hi": 0.1},
        {"training": "full"},
        {"control": True},
        {"precision": "bfloat16"},
        {"weights": "other.pth"},
        {"date": "2031-01-01"},
        {"torch": "9.9"},
        {"model": "deit_s"},
        {"images_per_s": 99.0},
        {"n_failed": 1},
        {"knob": "1"},
        {"stages": ""},
        {"unbeaten": "random"},
        {"best": True},
        {"seed": 3},
        {"on_error": "skip"},
        {"dataset": "imagenet"},
        {"top5": None},
        {"nll_rise": None, "nll_rise_hi": 9.0},
        {"published_top1": 90.0},
    ],
    ids=lambda cells: "+".join(cells),
)
def test_every_column_is_compared(one, cells, monkeypatch):
    """With the predictions as they are: one column that was edited is named, and no other."""
    forge(one, "lotm", **cells)
    found = verify(one, ["lotm"], sample=1)
    assert not found.confirmed
    verdict = verdicts(found)["lotm"]
    parts = re.split("[;,] (?=[a-z0-9_]+ [^ ]+ instead of)", verdict)
    assert [part.split()[0] for part in parts] == list(cells)


def test_a_board_compares_all_but_what_it_has_no_evidence_of(one, tmp_path):
    board = tmp_path / "board.csv"
    add(board, one)
    honest = board.read_text()
    for cells, wrong in (
        ({"limited": False}, True),
        ({"top1_hi": 99.0}, True),
        ({"nll_rise_lo": -9.0}, True),
        ({"kl": 9.0}, False),
    ):
        board.write_text(
            to_csv([replace(row, **cells) if row.method == "lotm" else row for row in read(board)])
        )
        found = verify(board, ["lotm"], sample=1)
        assert found.confirmed != wrong, cells
        if "limited" not in cells:  # with which it is another row, that has no evidence
            assert found.remarks[0].startswith("Not computed again, at most compared with run.json: top5, kl")
        board.write_text(honest)


def test_a_board_is_checked_row_by_row(made, one, tmp_path):
    board = tmp_path / "board.csv"
    add(board, one, made / "two")
    found = verify(board, sample=4)
    assert found.confirmed
    assert (
        len(found.checks) == 3 + 7
    )  # the unreduced model, lotm and topk; the unreduced model, and lotm and two controls at two budgets
    assert all(row.verified["images"] == 4 for row in load(board))
    add(board, one)  # the same outcomes: what was found of them holds
    assert all(row.verified for row in load(board))


def test_rows_without_predictions_cannot_be_confirmed(one, tmp_path):
    (one / "predictions.npz").unlink()
    board = tmp_path / "board.csv"
    add(board, one)
    found = verify(board)
    assert not found.confirmed
    assert set(verdicts(found).values()) == {
        "cannot be checked: its predictions or its run's configuration are missing"
    }


def configuration(folder):
    return json.loads((folder / "run.json").read_text())


def test_what_is_gone_or_changed_is_one_sentence(one):
    about = configuration(one)
    for change, places, match in [
        ({}, Places(weights="/nowhere.pth"), "The run cannot be repeated: No weight file at /nowhere.pth"),
        ({}, Places(data="/nowhere"), "The run cannot be repeated: No data at '/nowhere'"),
        ({"weights_hash": "abc"}, Places(), "The weights differ from those of the run .*--weights"),
        ({"data_hash": "abc"}, Places(), "The images differ from those of the run .*--data"),
        ({"adapters": {"sit": "abc"}}, Places(), "The parameters of sit differ from .*--adapters"),
        ({"methods": ["lotm", "foreign"]}, Places(), "foreign.*--plugin"),
        ({"precision": "torch.int3"}, Places(), "does not contain a valid configuration"),
    ]:
        changed = {**about, "configuration": {**about["configuration"], **change}}
        with pytest.raises(TokredError, match=match) as error:
            job_of(changed, places)
        assert "\n" not in str(error.value)


def test_the_gap_is_that_of_the_class_of_before():
    logits = torch.tensor([[0.0, 2.0, 1.5], [5.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    outcomes = Again(np.array([1, 2, 7, -1]))
    outcomes.put(np.array([1, 0, 2]), logits, torch.tensor([1, 0, 1]), logits)
    expected = [
        5.0,
        0.5,
        np.inf,
        np.inf,
    ]  # of log-softmax as of logits; class 7 does not exist, and row 3 was not run
    assert outcomes.gap.tolist() == pytest.approx(expected)


def test_the_command(one, tmp_path):
    code, text = run("leaderboard", "verify", one, "--method", "lotm,topk", "--sample", "4")
    assert code == 0
    assert text.count("confirmed, to the last bit") == 2
    forge(one, "topk", top1=100.0)
    code, text = run("leaderboard", "verify", one, "--method", "topk", "--sample", "4")
    assert code == 1
    assert "top1 100 instead of" in text
    code, text = run("leaderboard", "verify", one, "--method", "topp")
    assert (code, "Did you mean" in text) == (2, True)
    code, text = run("leaderboard", "verify", tmp_path / "none")
    assert code == 2
    assert text.startswith("Error: There is no leaderboard at")
    (one / "predictions.npz").write_bytes(b"PK nonsense")
    code, text = run("leaderboard", "verify", one)
    assert (code, "predictions.npz is damaged" in text) == (2, True)
