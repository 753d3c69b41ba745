"""The outcomes behind the rows of a board: kept, merged, checked, and never another row's."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.boards import by_method, folder, made, outcome, row
from helpers.command import run

from tokred.evaluation.metrics import score
from tokred.evaluation.run_folder import read_run
from tokred.leaderboard import Change, add, read
from tokred.leaderboard.evidence import Evidence, claims, evidence_of
from tokred.leaderboard.evidence_store import Store
from tokred.tables.row import BASELINE


def test_evidence_is_kept_whole_and_small(tmp_path):
    n = 50_000
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 1000, n).astype(np.int32)
    kept = Evidence(
        rng.random(n) < 0.8,
        prediction,
        np.arange(n, dtype=np.int32),
        "hash",
        "lotm",
        {"configuration": {}},
        {"date": "x"},
        (n,),
    )
    data = kept.pack()
    back = Evidence.unpack(data)
    assert len(data) < 100_000  # random predictions, which do not compress; a bit and two bytes each
    assert back.nll is None
    lossy = replace(kept, nll=rng.exponential(size=n).astype(np.float32))
    assert len(lossy.pack()) < 300_000  # and four bytes
    assert np.array_equal(Evidence.unpack(lossy.pack()).nll, lossy.nll)
    assert Evidence.unpack(lossy.pack()).digest == lossy.digest != kept.digest
    assert (back.images, back.name, back.run, back.verified, back.left_out) == (
        "hash",
        "lotm",
        {"configuration": {}},
        {"date": "x"},
        (n,),
    )
    for part in ("correct", "prediction", "groups"):
        assert np.array_equal(getattr(back, part), getattr(kept, part))
    assert back.digest == kept.digest
    assert back.places.tolist() == list(range(n))
    for damaged in (b"", data[:-100], b"PK" + data):
        with pytest.raises(ValueError, match="not the evidence of a row"):
            Evidence.unpack(damaged)


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ({"budget": 0.3}, "topk"),
        ({"budget": 0.30000000000000004}, "topk@0.30000000000000004"),
        ({"budget": 0.3}, "topk@0.3"),
        ({"budget": None, "knob": "0.7"}, "topk@0.7"),
        ({"budget": None, "knob": "16", "stages": "4 7"}, "topk@16@4 7"),
    ],
)
def test_outcomes_are_found_under_the_names_that_runs_give_them(tmp_path, cells, name):
    source = folder(tmp_path / "r", {name: outcome(150)})
    run_ = read_run(source)
    assert evidence_of(run_, row("topk", outcome(150), **cells)).top1 == 75
    assert evidence_of(run_, row("topk", budget=None, knob="9")) is None  # at another knob: not these


def test_a_renewed_row_takes_its_evidence_along(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path, {"lotm": outcome(185)}))
    add(board, made(tmp_path, {"lotm": outcome(150)}, "newer", date="2026-02-02"))
    assert len(list((tmp_path / "b.rows").iterdir())) == 2  # baseline and lotm
    assert by_method(board)["lotm"].evidence.top1 == 75
    bare = made(tmp_path, {"lotm": outcome(140)}, "bare", date="2026-03-03")
    (bare / "predictions.npz").unlink()
    change = add(board, bare)  # which does not replace what has evidence
    assert (change.kept, change.replaced) == (2, 0)
    assert (
        change.remarks[1]
        == "A row of lotm without predictions is left out: the board has the same row with predictions."
    )
    standing = by_method(board)["lotm"]
    assert (standing.row.top1, standing.evidence.top1, standing.exclusions) == (75, 75, [])


def test_a_row_without_predictions_that_contradicts_itself_is_refused(tmp_path):
    board, bare = tmp_path / "b.csv", made(tmp_path, rows={"tome": {"top1": 99.9}}, name="forged")
    (bare / "predictions.npz").unlink()
    change = add(board, bare)
    assert "tome" not in by_method(board)
    assert change.kept == 1
    assert change.remarks[0].startswith(
        "A row of tome is refused because it contradicts itself: top1 is 99.9, outside"
    )
    add(board, bare / "leaderboard.csv", made(tmp_path))  # with its predictions the row itself is honest
    assert by_method(board)["tome"].row.top1 == 92
    text = board.read_text()
    shutil.rmtree(tmp_path / "b.rows")
    board.write_text(text.replace(",92,", ",99.9,"))  # edited by hand
    assert by_method(board)["tome"].exclusions[0].startswith("contradicts itself: top1 is 99.9")
    run("leaderboard", "build", "--board", board)
    assert "no predictions" in board.with_suffix(".md").read_text()


def test_boards_merge_with_their_evidence(tmp_path):
    one, two, both = (tmp_path / name for name in ("one.csv", "two.csv", "both.csv"))
    add(one, made(tmp_path, {"lotm": outcome(185)}, "x"))
    add(two, made(tmp_path, {"tome": outcome(150)}, "y"))
    add(both, one, two)
    assert {m: (s.rank, s.unpaired) for m, s in by_method(both).items()} == {
        "lotm": (1, False),
        "tome": (2, False),
    }


def test_a_forged_run_and_a_forged_board_are_named(tmp_path):
    source, board = made(tmp_path), tmp_path / "b.csv"
    text = (source / "leaderboard.csv").read_text()
    (source / "leaderboard.csv").write_text(text.replace("92.5,", "98.5,"))
    change = add(board, source)
    assert change.remarks == (
        "1 row is excluded from the ranking: lotm (contradicts its predictions: top1 98.5 instead of 92.5).",
    )
    assert by_method(board)["lotm"].rank is None
    honest = tmp_path / "h.csv"
    add(honest, made(tmp_path, name="honest"))
    honest.write_text(honest.read_text().replace("92.5,", "98.5,"))
    assert "contradicts its predictions: top1 98.5 instead of 92.5" in by_method(honest)["lotm"].exclusions
    assert by_method(honest)["tome"].rank == 1


@pytest.mark.parametrize("column", ["top1", "top5", "kl"])
def test_a_dispute_goes_with_its_row_from_board_to_board(tmp_path, column):
    score = 94.0 if column == "top1" else 96.0
    source = made(tmp_path, rows={"lotm": {column: score}})
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    assert "excluded from the ranking: lotm" in add(one, source).remarks[0]
    assert "excluded from the ranking: lotm" in add(two, one).remarks[0]
    for board in (one, two):
        standing = by_method(board)["lotm"]
        assert standing.rank is None
        assert f"{column} {score:g} instead of" in standing.exclusions[0]
    add(two, made(tmp_path, name="honest"))  # the same predictions with their own scores
    assert by_method(two)["lotm"].rank == 1


def test_damaged_predictions_and_damaged_evidence(tmp_path):
    source, board = made(tmp_path), tmp_path / "b.csv"
    good = (source / "predictions.npz").read_bytes()
    (source / "predictions.npz").write_bytes(good[:500])
    change = add(board, source)
    assert change == Change(5, 0, 0, 5)
    assert re.match("The rows of .* are added without their predictions: .*is damaged", change.remarks[0])
    (source / "predictions.npz").write_bytes(good)
    add(board, source)
    for file in (tmp_path / "b.rows").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert by_method(board)["lotm"].unpaired


def test_claims_are_those_of_the_scores(tmp_path):
    rng = np.random.default_rng(1)
    source = folder(
        tmp_path / "r",
        {BASELINE: rng.random(200) < 0.9, "lotm": rng.random(200) < 0.8},
        groups=np.arange(200) // 3,
    )
    found = read_run(source)
    parts = found.predictions.models
    for k, part in enumerate(parts.values()):
        part.nll[:] = 0.3 * k + rng.exponential(size=200)
    scores = score(parts["lotm"], parts[BASELINE], found.predictions.labels, found.predictions.groups)
    columns = ("top1", "top5", "drop", "agreement", "kl", "p_value", "nll", "nll_rise")
    stated = replace(read(source / "leaderboard.csv")[1], **{name: getattr(scores, name) for name in columns})
    assert claims(found, stated) == []
    for column in columns:
        (wrong,) = claims(found, replace(stated, **{column: 0.123}))
        assert wrong.startswith(f"{column} 0.123 instead of")


WRITER = """
import sys
from pathlib import Path
from tokred import leaderboard
board, *runs = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
while True:
    for run in runs:
        leaderboard.add(board, run, timeout=400)
        assert "torch" not in sys.modules
        print("added", flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_no_row_with_another_ones_evidence(tmp_path):
    board = tmp_path / "b.csv"
    runs = [made(tmp_path, {"lotm": outcome(150 + i), "tome": outcome(120 + i)}, f"r{i}") for i in range(4)]
    draw = random.Random(1)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, board, *runs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        writer.stdin.write("\n")
        writer.stdin.flush()
        for _ in range(draw.randint(1, 6)):
            assert writer.stdout.readline() == "added\n"
        time.sleep(draw.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        for standing in by_method(board).values():
            assert standing.evidence is not None
            assert not standing.exclusions
    add(board, runs[0])
    assert len(list(Store(board).folder.iterdir())) == 3  # of what was killed nothing stays


@pytest.mark.slow
def test_two_writers_and_a_reader(tmp_path):
    board = tmp_path / "b.csv"
    runs = [made(tmp_path, {"lotm": outcome(150 + i)}, f"r{i}") for i in range(3)]
    add(board, runs[0])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, board, *order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (runs, runs[::-1])
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
            writer.stdin.write("\n")
            writer.stdin.flush()
        from tokred.leaderboard.publish import ranked_rows as read_all

        seen, deadline = set(), time.monotonic() + 400
        while len(seen) < 4 and time.monotonic() < deadline:
            for standing in read_all(board):
                assert standing.evidence is not None
                assert not standing.exclusions
                seen.add(standing.row.top1)
        assert len(seen) == 4  # the baseline, and all three of LOTM's: they wrote while this read
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
