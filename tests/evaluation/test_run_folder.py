"""The folder of a run: whose it is, and what a reader finds in it at any time."""

import contextlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.processes import CONTEXT

from tokred.errors import TokredError
from tokred.evaluation.folder import Folder
from tokred.evaluation.predictions import Evaluation, Failure
from tokred.evaluation.recording import Record
from tokred.evaluation.run_folder import FILES
from tokred.utils.atomic import check_writable

SOFTWARE = {"code": "abc"}


def opened(path, software=None, **configuration):
    return Folder(path, configuration, software or SOFTWARE, {"date": "2026-01-01"})


def packed(folder):
    return filled(key=folder.key).take(np.arange(10)).pack()


def filled(n=10, methods=("lotm", "topk"), key=""):
    """An evaluation of which every value differs from the empty one."""
    evaluation = Evaluation.empty(n, methods)
    evaluation.key = key
    evaluation.labels[:] = np.arange(n)
    for k, outcomes in enumerate((evaluation.dense, *evaluation.methods.values())):
        outcomes.prediction[:], outcomes.top5[:], outcomes.kl[:] = np.arange(n) + k, True, 0.5 + k
        outcomes.nll[:] = 0.25 + k
    evaluation.done[:] = True
    return evaluation


def same(a, b):
    for name in ("labels", "done"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in a.methods:
        for part in ("prediction", "top5", "kl", "nll"):
            np.testing.assert_array_equal(getattr(a.methods[name], part), getattr(b.methods[name], part))
    assert (a.failed, a.unreadable, a.kinds, a.smallest_batch) == (
        b.failed,
        b.unreadable,
        b.kinds,
        b.smallest_batch,
    )


def test_a_run_goes_on_in_its_folder_with_the_versions_it_began_with(tmp_path):
    opened(tmp_path, budget=0.3, stages=(4, 7)).release()
    again = Folder(tmp_path, {"stages": [4, 7], "budget": 0.3}, SOFTWARE, {"date": "2027-09-09"})
    assert (again.notice, again.finished, again.run["date"]) == ("", False, "2026-01-01")


@pytest.mark.parametrize(
    ("configuration", "software", "changed"),
    [({"budget": 0.4, "seed": 1}, SOFTWARE, "budget, seed"), ({"budget": 0.3}, {"code": "x"}, "code")],
)
def test_a_changed_run_starts_anew_and_says_what_changed_and_nothing_is_lost(
    tmp_path, configuration, software, changed
):
    first = opened(tmp_path, budget=0.3)
    first.finish(
        {"seconds": 1.0}, {"leaderboard.csv": "old", "predictions.npz": filled().take(np.arange(10)).pack()}
    )
    first.release()
    second = opened(tmp_path, software, **configuration)
    assert f"differs in {changed}. " in second.notice
    assert not second.finished
    assert not (tmp_path / "leaderboard.csv").exists()
    (aside,) = (tmp_path / "previous").iterdir()
    assert (aside / "leaderboard.csv").read_text() == "old"
    assert str(aside) in second.notice
    second.release()
    back = opened(aside, budget=0.3)  # what was put aside is a finished run
    assert back.finished


def test_going_back_to_an_earlier_run_finds_it_again(tmp_path):
    """However often: a run that was put aside is never overwritten."""
    one = opened(tmp_path, seed=1)
    one.finish({}, dict.fromkeys(FILES[:-1], "") | {"predictions.npz": packed(one)})
    one.release()
    two = opened(tmp_path, seed=2)
    two.save_predictions(filled(key=two.key), np.arange(4), 1.0)
    two.release()
    for _ in range(2):
        back = opened(tmp_path, seed=1)
        assert back.finished
        assert not back.damaged
        assert "resumes the one in" in back.notice
        assert not (tmp_path / "outcomes").exists()
        back.release()
        again = opened(tmp_path, seed=2)
        found = Evaluation.empty(10, ["lotm", "topk"])
        again.load_predictions(found)
        assert found.done.sum() == 4
        again.release()


def test_a_kill_on_the_way_to_or_from_the_side_loses_nothing(tmp_path, monkeypatch):
    one = opened(tmp_path / "whole", seed=1)
    one.save_predictions(filled(key=one.key), np.arange(4), 1.0)
    one.release()
    replace = os.replace
    for moment in range(1, 12):
        out, countdown = tmp_path / str(moment), moment
        shutil.copytree(tmp_path / "whole", out)

        def killed(source, target):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise SystemExit
            return replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with contextlib.suppress(SystemExit):
                opened(out, seed=2).release()
                opened(out, seed=1).release()
        back = opened(out, seed=1)
        found = Evaluation.empty(10, ["lotm", "topk"])
        back.load_predictions(found)
        assert found.done.sum() == 4, moment
        back.release()


def test_what_another_run_has_packed_is_not_taken(tmp_path):
    folder, back = opened(tmp_path), Evaluation.empty(10, ["lotm", "topk"])
    folder.save_predictions(filled(key="of another run"), np.arange(5), 1.0)
    folder.save_predictions(
        filled(methods=("lotm",), key=folder.key), np.arange(5, 10), 1.0
    )  # nor what lacks a method
    folder.load_predictions(back)
    assert not back.done.any()


@pytest.mark.slow
def test_threads_may_enter_while_rows_are_packed():
    evaluation, stop = filled(20_000), threading.Event()
    evaluation.kinds = dict.fromkeys(range(20_000), "greyscale")

    def enter():
        index = 20_000
        while not stop.is_set():
            evaluation.remark({}, {index: "CMYK"})
            index += 1
            time.sleep(1e-4)
        return index - 20_000

    with ThreadPoolExecutor(1) as pool:
        entered = pool.submit(enter)
        try:
            packed = [evaluation.take(np.arange(20_000)).pack() for _ in range(20)]
        finally:
            stop.set()
    entries = entered.result()  # an error in the thread is raised here
    assert entries > 0
    assert list(evaluation.kinds.values()).count("CMYK") == entries
    back = Evaluation.empty(20_000, ["lotm", "topk"])
    back.absorb(packed[-1])
    np.testing.assert_array_equal(back.labels, evaluation.labels)
    assert [back.kinds[i] for i in range(20_000)] == ["greyscale"] * 20_000


def test_a_damaged_end_falls_back_on_the_parts(tmp_path):
    folder = opened(tmp_path)
    folder.finish({}, {"predictions.npz": b"cut off"})
    folder.save_predictions(filled(key=folder.key), np.arange(10), 1.0)
    back = Evaluation.empty(10, ["lotm", "topk"])
    folder.load_predictions(back)
    assert back.done.all()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("[]")
    with pytest.raises(TokredError, match="not a run of tokred"):
        opened(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "table.md").write_text("mine")
    with pytest.raises(TokredError, match=r"contains table.md but no run"):
        opened(tmp_path / "b")
    assert (tmp_path / "b" / "table.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(TokredError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")


def _hold(path, held):
    folder = opened(path)
    held.set()
    time.sleep(120)
    folder.release()


def test_two_processes_do_not_share_a_folder(tmp_path):
    held = CONTEXT.Event()
    other = CONTEXT.Process(target=_hold, args=(tmp_path, held))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(TokredError, match="Another process is writing"):
            opened(tmp_path)
        other.kill()  # and a killed one leaves no lock behind
        other.join()
        opened(tmp_path).release()
    finally:
        other.kill()
        other.join()


def test_writing_is_one_step(tmp_path, monkeypatch):
    folder = opened(tmp_path)
    folder.write("leaderboard.csv", "first")

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:2])  # a part of it still has room
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(TokredError, match="No space left on device"):
        folder.write("leaderboard.csv", "second")
    assert (tmp_path / "leaderboard.csv").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "leaderboard.csv", "run.json"]


def test_rows_come_back_from_disk_whatever_the_order_of_the_parts(tmp_path):
    folder = opened(tmp_path)
    source = filled(key=folder.key)
    source.unreadable, source.kinds, source.smallest_batch = {3: "broken"}, {7: "CMYK"}, 2
    for rows in ([6, 7, 8], [0, 1], [2, 3, 4, 5], [9]):
        folder.save_predictions(source, np.array(rows), 1.5)
    back = Evaluation.empty(10, ["lotm", "topk"])
    folder.load_predictions(back)
    same(back, source)
    assert back.seconds == 6.0


def test_a_damaged_part_counts_as_not_there(tmp_path):
    folder = opened(tmp_path)
    source = filled(key=folder.key)
    folder.save_predictions(source, np.arange(5), 1.0)
    folder.save_predictions(source, np.arange(5, 10), 1.0)
    for damage in (b"", b"no npz", (tmp_path / "outcomes" / "000000005.npz").read_bytes()[:-40]):
        (tmp_path / "outcomes" / "000000005.npz").write_bytes(damage)
        back = Evaluation.empty(10, ["lotm", "topk"])
        folder.load_predictions(back)
        assert back.done.tolist() == [True] * 5 + [False] * 5
        assert back.seconds == 1.0


def test_the_earliest_failure_is_the_one_that_counts(tmp_path):
    a, b = filled(), filled()
    a.fail("lotm", Failure(8, "late"))
    b.fail("lotm", Failure(4, "early"))
    b.fail("lotm", Failure(6, "later"))
    merged = Evaluation.empty(10, ["lotm", "topk"])
    merged.absorb(a.take(np.arange(5, 10)).pack())
    merged.absorb(b.take(np.arange(5)).pack())
    assert merged.failed == {"lotm": Failure(4, "early")}
    assert (merged.methods["topk"].prediction >= 0).all()


def test_a_finished_run_is_found_whole(tmp_path):
    folder = opened(tmp_path)
    source = filled(key=folder.key)
    folder.save_predictions(source, np.arange(10), 2.0)
    folder.finish(
        {"seconds": 2.0},
        {"predictions.npz": source.take(np.arange(10), seconds=2.0).pack(), "leaderboard.csv": ""},
    )
    folder.release()
    again = opened(tmp_path)
    back = Evaluation.empty(10, ["lotm", "topk"])
    again.load_predictions(back)
    same(back, source)
    assert again.finished
    assert not (tmp_path / "outcomes").exists()
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == 2.0


def test_a_record_knows_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("tokred.evaluation.recording._INTERVAL", 0.0)
    folder, evaluation = opened(tmp_path), filled()
    evaluation.done[4:6] = evaluation.done[9] = False
    batches = [range(4), range(4, 8), range(8, 10)]
    record = Record(evaluation, folder)
    assert record.missing(batches) == batches[1:]
    record.finished(np.arange(4))
    assert len(list((tmp_path / "outcomes").iterdir())) == 1
    evaluation.done[4:6] = True
    record.flush_all()
    saved = {file.name for file in (tmp_path / "outcomes").iterdir()}
    assert saved == {"000000000.npz", "000000004.npz"}


def test_a_finished_run_knows_which_of_its_files_were_changed(tmp_path):
    folder = opened(tmp_path)
    packed = filled(key=folder.key).take(np.arange(10)).pack()
    files = dict.fromkeys((name for name in FILES if name != "run.json"), "contents\n")
    folder.finish({}, {**files, "predictions.npz": packed, "maps.npz": b"maps"})
    folder.release()
    assert opened(tmp_path).damaged == []
    (tmp_path / "leaderboard.csv").write_text("")
    (tmp_path / "table.md").write_text("content\n")
    (tmp_path / "maps.npz").unlink()
    assert sorted(opened(tmp_path).damaged) == ["leaderboard.csv", "maps.npz", "table.md"]


def test_a_finished_run_that_cannot_be_written_can_be_read(tmp_path, monkeypatch):
    folder = opened(tmp_path, methods=["lotm"])
    source = filled(key=folder.key)

    def read_only(path, option="--out"):
        raise TokredError(f"The output folder {path} cannot be written.")

    with monkeypatch.context() as patch:
        patch.setattr("tokred.evaluation.folder.check_writable", read_only)
        with pytest.raises(TokredError, match="cannot be written"):  # it is not finished
            opened(tmp_path, methods=["lotm"])
        folder.finish({}, {"predictions.npz": source.take(np.arange(10)).pack()})
        folder.release()
        again = opened(tmp_path, methods=["lotm"])
        assert (again.read_only, again.finished) == (True, True)
        back = Evaluation.empty(10, ["lotm", "topk"])
        again.load_predictions(back)
        same(back, source)
        with pytest.raises(TokredError, match="cannot be written"):  # another run
            opened(tmp_path, methods=["tome"])
