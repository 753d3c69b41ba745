"""Merging runs into one board: nothing is lost, whoever writes at the same time or dies while writing."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
from filelock import FileLock

from tokred.errors import TokredError
from tokred.leaderboard import Change, add, merge, read
from tokred.leaderboard.publish import ranked_rows
from tokred.tables import row as results
from tokred.tables.row import BASELINE, COLUMNS, SCHEMA, Row

ROW = Row(
    "lotm",
    options="order=inplace",
    model="deit_s",
    dataset="photodigits",
    split="test",
    n_images=1000,
    budget=0.3,
    top1=90.0,
    protocol="native",
    stages="4 7 11",
    weights_hash="w",
    data_hash="d",
    precision="float32",
    device="cpu",
    batch_size=16,
    seed=0,
    date="2025-01-02",
)
FIRST_SCHEMA = COLUMNS[: COLUMNS.index("date") + 1]

WRITER = """
import sys, time
from pathlib import Path
from tokred import leaderboard
from tokred.tables.row import Row
assert "torch" not in sys.modules
board, name, adds, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for step in range(adds):
    common = {"model": "m", "budget": 0.3, "date": "2025-01-01"}
    made = [Row(f"{name}-{step}-{i}", top1=float(step), **common) for i in range(rows)]
    # On a busy machine a turn may be long in coming; that nothing is lost is what is tested.
    leaderboard.add(board, [*made, Row("shared", **common)], timeout=400)
    print("added", flush=True)
"""


@pytest.fixture
def writers():
    """Start writers, which all begin when the last one is ready; what still runs at the end is killed."""
    started = []

    def start(board, count, adds, rows):
        new = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(board), f"w{i}", str(adds), str(rows)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        started.extend(new)
        for process in new:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in new:
            process.stdin.write("\n")
            process.stdin.flush()
        return new

    yield start
    for process in started:
        process.kill()
        process.communicate()


def written(folder, *rows):
    folder.mkdir(exist_ok=True)
    (folder / "leaderboard.csv").write_text(results.to_csv(rows), encoding="utf-8")
    return folder


def methods(board):
    return [row.method for row in read(board)]


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.slow
def test_writers_lose_nothing_and_a_reader_always_sees_a_whole_board(tmp_path, writers):
    board = tmp_path / "leaderboard.csv"
    processes = writers(board, count=4, adds=6, rows=5)
    sizes, deadline = [], time.monotonic() + 400
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if board.exists():
            sizes.append(len(read(board)))  # raises unless every row is whole
        time.sleep(0.002)
    assert [process.wait(timeout=60) for process in processes] == [0] * 4, [
        process.stderr.read() for process in processes
    ]
    wanted = {f"w{p}-{step}-{i}" for p in range(4) for step in range(6) for i in range(5)} | {"shared"}
    found = methods(board)
    assert len(found) == len(set(found)) == 4 * 6 * 5 + 1
    assert set(found) == wanted
    assert sizes == sorted(sizes)  # and a board never shrinks
    assert len(set(sizes)) > 5  # the reader looked while they wrote
    assert not leftovers(tmp_path)
    assert list(pd.read_csv(board).columns) == list(COLUMNS)


@pytest.mark.slow
def test_the_order_does_not_depend_on_who_comes_first(tmp_path):
    rows = [
        replace(ROW, method=f"m{i}", budget=b, top1=float(i % 3)) for i in range(12) for b in (0.2, 0.5)
    ] + [replace(ROW, top1=float("nan"))]
    texts = set()
    for seed in range(5):
        board = tmp_path / f"{seed}.csv"
        for row in random.Random(seed).sample(rows, len(rows)):
            add(board, [row])
        texts.add(board.read_bytes())
    assert len(texts) == 1


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_board_and_no_lock(tmp_path, writers):
    board = tmp_path / "leaderboard.csv"
    add(board, [replace(ROW, method="first")])
    draw = random.Random(3)
    for round_ in range(5):
        (process,) = writers(board, count=1, adds=100_000, rows=60)
        assert process.stdout.readline() == "added\n"
        time.sleep(draw.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = methods(board)  # whole
        assert {"first", "w0-0-0", "shared"} <= set(found)  # what was there and what was said to be added
        assert (
            sum(name.startswith("w0-") for name in found) % 60 == 0
        )  # an addition is there wholly or not at all
        assert add(board, [replace(ROW, method=f"after-{round_}")], timeout=5).added == 1
        assert not leftovers(tmp_path)


def test_a_writer_that_dies_between_writing_and_renaming(tmp_path, monkeypatch):
    board = tmp_path / "leaderboard.csv"
    add(board, [ROW])
    before = board.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(board, [replace(ROW, method="lost")])
    assert board.read_bytes() == before
    assert len(leftovers(tmp_path)) == 1  # as a kill leaves it
    add(board, [replace(ROW, method="next")])
    assert sorted(methods(board)) == ["lotm", "next"]
    assert not leftovers(tmp_path)


def test_a_run_is_added_once_and_renewed(tmp_path):
    board = tmp_path / "leaderboard.csv"
    first = written(tmp_path / "a", replace(ROW, method=BASELINE, budget=None, top1=91.0), ROW)
    assert add(board, first) == Change(added=2, replaced=0, kept=0, total=2)
    once = board.read_bytes()
    assert once == (first / "leaderboard.csv").read_bytes()  # text for text
    assert add(board, first) == Change(0, 2, 0, 2)
    assert board.read_bytes() == once
    newer = written(
        tmp_path / "b",
        replace(ROW, top1=92.0, date="2025-02-01", torch="9", knob="5", tokens="1 2", gflops=3.0),
    )
    assert add(board, newer / "leaderboard.csv") == Change(0, 1, 0, 2)
    assert add(board, first) == Change(0, 1, 1, 2)  # an older result does not come back
    assert [row.top1 for row in read(board)] == [91, 92]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("method", "tome"),
        ("options", "order=append"),
        ("model", "deit_t"),
        ("weights_hash", "v"),
        ("data_hash", "e"),
        ("split", "val"),
        ("n_images", 999),
        ("limited", True),
        ("budget", 0.4),
        ("protocol", "common"),
        ("precision", "bfloat16"),
        ("device", "cuda"),
        ("batch_size", 32),
        ("seed", 1),
        ("adapter", "a"),
        ("training", "full"),
        ("unfitted", True),
        ("img_size", 384),
        ("crop_pct", 0.95),
        ("interpolation", "bicubic"),
    ],
)
def test_what_makes_rows_different(column, value):
    assert len(merge(lines(ROW), lines(replace(ROW, **{column: value})))[0]) == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("top1", 1.0),
        ("knob", "7"),
        ("gflops", 1.0),
        ("latency_ms", 5.0),
        ("torch", "9"),
        ("commit", "x"),
        ("stages", "1 2"),
        ("dataset", "moved"),
        ("weights", "renamed.pth"),
    ],
)
def test_what_does_not(column, value):
    merged, change = merge(lines(ROW), lines(replace(ROW, **{column: value})))
    assert change == Change(0, 1, 0, 1)
    assert getattr(merged[0], column) == value


def test_chosen_stages_names_without_hash_and_device_numbers():
    custom = replace(ROW, protocol="custom")
    assert len(merge(lines(custom), lines(replace(custom, stages="1 2")))[0]) == 2
    bare = replace(ROW, weights_hash="", data_hash="")
    assert len(merge(lines(bare), lines(replace(bare, dataset="b")))[0]) == 2
    assert len(merge(lines(bare), lines(replace(bare, weights="b")))[0]) == 2
    assert len(merge(lines(replace(ROW, device="cuda:0")), lines(replace(ROW, device="cuda:1")))[0]) == 1


def test_a_failure_never_replaces_a_measurement():
    failed = replace(ROW, status="failed", error="killed", top1=None, date="2026-01-01")
    merged, change = merge(lines(ROW), lines(failed))
    assert (merged, change) == (lines(ROW), Change(0, 0, 1, 1))
    merged, change = merge(lines(failed), lines(ROW))
    assert (merged, change) == (lines(ROW), Change(0, 1, 0, 1))
    unfitted = replace(failed, status="unfitted", adapter="")
    fitted = replace(ROW, adapter="hash", training="reducer")
    assert merge(lines(unfitted), lines(fitted))[0] == lines(fitted)  # it tells nothing any more
    assert merge(lines(fitted), lines(unfitted)) == (lines(fitted), Change(0, 0, 1, 1))
    assert len(merge([], lines(failed))[0]) == 1


def lines(*rows):
    return list(rows)


def test_a_board_of_an_older_schema_is_upgraded(tmp_path):
    board = tmp_path / "leaderboard.csv"
    table = results.frame([replace(ROW, method="old")]).map(results.csv_cell)
    table[list(FIRST_SCHEMA)].to_csv(board, index=False)
    assert add(board, [ROW, replace(ROW, method="old", top1=50.0)]) == Change(
        1, 1, 0, 2
    )  # the old row is recognised
    assert list(pd.read_csv(board).columns) == list(COLUMNS)
    table[list(COLUMNS[: COLUMNS.index("schema")])].to_csv(board, index=False)
    (row,) = read(board)
    assert (row.schema, row.method) == (1, "old")


def test_text_survives(tmp_path):
    board = tmp_path / "leaderboard.csv"
    hostile = 'a,"b"\r\nc\rd\ne;|<x>\x00 \udcff ü'
    add(board, [replace(ROW, error=hostile, status="failed")])
    once = board.read_bytes()
    add(board, [replace(ROW, method="other")])
    assert read(board)[1].error == 'a,"b"\nc\nd\ne;|<x>\\x00 \\udcff ü'
    assert once.splitlines()[1:] == board.read_bytes().splitlines()[2:]
    with board.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 3


def refused(board, *sources, match):
    before = board.read_bytes() if board.is_file() else None
    with pytest.raises(TokredError, match=match) as error:
        add(board, *sources or ([ROW],), timeout=0.2)
    assert "\n" not in str(error.value)
    assert (board.read_bytes() if board.is_file() else None) == before


def test_what_is_no_board_is_refused_and_left_alone(tmp_path):
    board = tmp_path / "leaderboard.csv"
    header = ",".join(COLUMNS)
    for text, match in [
        ("", "is empty"),
        (header + ",joy\n", "written by a newer tokred: this one does not know its column 'joy'"),
        (header.replace("options", "opt") + "\n", "column 'opt' is not tokred's"),
        ("method\n", "columns are missing"),
        ("a,b\n1,2\n", "column 'a' is not tokred's"),
        (header + "\nlotm,1\n", r"its row 1 has 2 cells for \d+ columns"),
        (header + '\n"lotm', "damaged"),
        (
            header + "\n" + ",".join(str(SCHEMA + 1) if name == "schema" else "x" for name in COLUMNS) + "\n",
            f"schema '{SCHEMA + 1}', and this tokred knows those up to {SCHEMA}",
        ),
        ("\x89PNG\udcff", "not a leaderboard of tokred"),
    ]:
        board.write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(board, match=match)
        with pytest.raises(TokredError, match=match):
            ranked_rows(board)
        assert list(tmp_path.iterdir()) == [board]  # no lock is left beside it
    board.unlink()
    board.mkdir()
    refused(board, match="is no file, which a board needs")
    board.rmdir()
    os.mkfifo(board)
    with pytest.raises(TokredError, match="is no file, which a board needs"):
        add(board, [ROW])


def test_what_is_no_run_is_refused(tmp_path):
    board = tmp_path / "leaderboard.csv"
    add(board, [ROW])
    (tmp_path / "empty").mkdir()
    refused(board, tmp_path / "empty", match="There is no run at .*empty; give the folder")
    refused(board, tmp_path / "missing", match="There is no run")
    refused(board, tmp_path, match="is the board itself")
    good, bad = written(tmp_path / "good", replace(ROW, method="good")), written(tmp_path / "bad", ROW)
    (bad / "leaderboard.csv").write_text("nonsense\n")
    refused(
        board, good, bad, match="bad/leaderboard.csv is no leaderboard"
    )  # then nothing of the good one is added either


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "board.csv", match="Cannot write .*file .*choose another place with --board")
    board = tmp_path / "board.csv"
    add(board, [ROW])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(
        board,
        [replace(ROW, method="more")],
        match="Cannot write .*No space left on device.*what was there before is unchanged",
    )
    assert not leftovers(tmp_path)


def test_a_held_lock_is_waited_for_and_then_named(tmp_path):
    board = tmp_path / "board.csv"
    with FileLock(tmp_path / ".board.csv.lock"):
        refused(
            board, match=r"locked by another process for 0.2 s; wait for it, or remove .*\.board\.csv\.lock"
        )
    (tmp_path / ".board.csv.lock").write_text(
        "999999\n"
    )  # the file alone, of a process that died, holds nobody up
    assert add(board, [ROW], timeout=0.2).added == 1


def test_a_link_and_the_file_rights_are_kept(tmp_path):
    target, link = tmp_path / "real.csv", tmp_path / "link.csv"
    add(target, [ROW])
    target.chmod(0o664)
    link.symlink_to(target)
    add(link, [replace(ROW, method="more")])
    assert link.is_symlink()
    assert len(read(target)) == 2
    assert target.stat().st_mode & 0o777 == 0o664


def command(*arguments, folder):
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "tokred", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_command(tmp_path):
    first, second = (
        written(tmp_path / "a", ROW),
        written(tmp_path / "b", replace(ROW, method="tome"), replace(ROW, date="2020-01-01")),
    )
    assert command("leaderboard", "add", first, folder=tmp_path) == (
        0,
        "leaderboard.csv: 1 added, 0 replaced; 1 rows.\n",
    )
    code, text = command("leaderboard", "add", first, second, "--board", "deep/er/all.csv", folder=tmp_path)
    assert (code, text) == (
        0,
        "deep/er/all.csv: 2 added, 0 replaced, 1 skipped in favour of better or newer rows; 2 rows.\n",
    )
    code, text = command("leaderboard", "add", tmp_path / "nothing", folder=tmp_path)
    assert code == 2
    assert text.startswith("Error: There is no run at")
