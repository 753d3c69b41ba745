"""A comparison that is killed at any moment and resumed leaves the very files of one that was not."""

import copy
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.outputs import plain
from helpers.processes import Command
from PIL import Image

from tokred.errors import TokredError
from tokred.evaluation import comparison, engine
from tokred.evaluation.comparison import Interrupted, Job
from tokred.evaluation.config import Config
from tokred.evaluation.predictions import Evaluation
from tokred.models import zoo
from tokred.tables import results_table
from tokred.testing import tiny_vit

pytestmark = pytest.mark.usefixtures("shared_costs")

PLAIN = ("leaderboard.csv", "table.md", "table.tex")  # no times in them
OPTIONS = {
    "model": "tiny",
    "budgets": (0.2,),
    "stages": (2, 3),
    "limit": 10,
    "batch_size": 2,
    "methods": ("lotm", "random"),
    "precision": "fp32",
}


def tiny_job(**changes):
    """A comparison of a tiny model on PhotoDigits with its plans made."""
    loaded = zoo.Loaded(tiny_vit(), "tiny", "random ones", "0" * 64)
    with mock.patch.object(zoo, "load_for", return_value=loaded):
        return Job(Config(**{**OPTIONS, **changes}), outputs=plain)


@pytest.fixture(scope="module")
def checked():
    """A job with its plans made; `fresh` gives copies that know nothing yet."""
    return tiny_job()


def fresh(job):
    job = copy.copy(job)
    job.evaluation, job.folder = Evaluation.empty(len(job.source), job.models), None
    return job


def finished(job, out):
    """Run to the end in a folder, and what it leaves that holds no times."""
    job = fresh(job)
    job.open(out)
    job.run(workers=0)
    arrays = np.load(out / "predictions.npz")
    return [(out / name).read_bytes() for name in PLAIN], {
        name: arrays[name] for name in arrays if name != "about"
    }


def same(a, b):
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        np.testing.assert_array_equal(a[1][name], b[1][name])


@pytest.mark.slow
def test_the_same_table_twice_and_with_other_worker_counts(checked, tmp_path):
    whole = finished(checked, tmp_path / "0")
    for workers in (1, 2):
        job = fresh(checked)
        job.open(tmp_path / str(workers))
        job.run(workers=workers)
        assert [(tmp_path / str(workers) / name).read_bytes() for name in PLAIN] == whole[0]


def test_speed_is_measured_apart_and_kept(checked, tmp_path):
    job = fresh(checked)
    job.open(tmp_path)
    rows = {row.method: row for row in job.run(workers=0, bench=2).rows}
    for name, row in rows.items():
        assert row.images_per_s == pytest.approx(1e3 * row.batch_size / row.latency_ms)
        assert row.promise_share == pytest.approx(row.speedup * (1 - row.reduction)), name
    assert rows["baseline"].speedup == 1
    written = (tmp_path / "leaderboard.csv").read_bytes()
    again = fresh(checked)
    again.open(tmp_path)
    again.run(workers=0)
    assert (tmp_path / "leaderboard.csv").read_bytes() == written


class Killed(BaseException):
    """As SIGKILL, this is not for anybody to catch."""


@pytest.mark.slow
def test_killed_before_or_in_the_middle_of_any_write(tmp_path, monkeypatch):
    """A kill at every write or move of a run, one after the other."""
    monkeypatch.setattr("tokred.evaluation.recording._INTERVAL", 0.0)
    checked = tiny_job(limit=4, methods=("lotm",), controls=False)
    whole = finished(checked, tmp_path / "whole")
    write, replace = Path.write_bytes, os.replace
    countdown = 0

    def killed_in(function):
        def wrapped(*arguments):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                if function is write:
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Killed
            return function(*arguments)

        return wrapped

    for moment in range(1, 100):
        out, countdown = tmp_path / str(moment), moment
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", killed_in(write))
            patch.setattr(os, "replace", killed_in(replace))
            try:
                same(finished(checked, out), whole)
                break  # it came to its end before that many writes
            except Killed:
                pass
        same(finished(checked, out), whole)
        assert json.loads((out / "run.json").read_text())["finished"]
        assert not list(out.glob("outcomes/*"))
    assert moment > 15


def test_what_was_evaluated_before_a_kill_is_not_evaluated_again(checked, tmp_path, monkeypatch):
    monkeypatch.setattr("tokred.evaluation.recording._INTERVAL", 0.0)
    job, seen = fresh(checked), []

    def killed(images):
        seen.append(images)
        if len(seen) == 4:  # the first call tells of what was there before
            raise Killed

    job.open(tmp_path)
    with pytest.raises(Killed):
        job.run(workers=0, progress=killed)
    again, later = fresh(checked), []
    assert "Resuming: 6 of 10 images" in again.open(tmp_path)
    again.run(workers=0, progress=later.append)
    assert later == [6, 2, 2]


def test_a_changed_method_starts_anew(checked, tmp_path, monkeypatch):
    finished(checked, tmp_path)
    monkeypatch.setattr(comparison, "software", lambda methods: {"code": "another"})
    job = fresh(checked)
    assert "differs in code, numpy, pillow, timm, torch. " in job.open(tmp_path)
    assert not job.evaluation.done.any()
    job.folder.release()


def test_control_c_leaves_a_marked_table_and_goes_on(checked, tmp_path):
    whole = finished(checked, tmp_path / "whole")
    job, calls = fresh(checked), []

    def interrupt(images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt

    job.open(tmp_path / "out")
    with pytest.raises(Interrupted) as ended:
        job.run(workers=0, progress=interrupt)
    partial = ended.value.comparison
    assert f"INTERRUPTED after {partial.rows[0].n_images} images" in partial.title
    saved = [np.load(file)["rows"] for file in (tmp_path / "out" / "outcomes").iterdir()]
    assert sum(map(len, saved)) == partial.rows[0].n_images
    assert {row.method for row in partial.rows} == {"baseline", "lotm", "random", "lowres"}
    assert all(row.limited and 4 <= row.n_images < 10 for row in partial.rows)
    expected = 100 * np.mean((whole[1]["lotm/prediction"] == whole[1]["labels"])[job.evaluation.done])
    assert next(row.top1 for row in partial.rows if row.method == "lotm") == pytest.approx(expected)
    assert not (tmp_path / "out" / "leaderboard.csv").exists()
    same(finished(checked, tmp_path / "out"), whole)


LIKE = {"batch_size": 2, "precision": "fp32"}


def command(folder, out, *more):
    """A comparison in a process of its own that saves every batch."""
    arguments = ("compare", "--model", "deit_t", "--limit", 24, "--batch-size", 2, "--methods", "lotm,random")
    return Command(
        folder,
        *(*arguments, "--precision", "fp32", "--workers", 1, "--out", out, *more),
        settings={"tokred.evaluation.recording._INTERVAL": 0, "tokred.report.outputs.files": plain},
    )


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path):
    out, rng, killed = tmp_path / "out", random.Random(), 0
    for attempt in range(3):
        process = command(tmp_path / f"printed{attempt}", out)
        outcomes = out / "outcomes"
        before = len(list(outcomes.glob("*.npz")))
        while process.running() and len(list(outcomes.glob("*.npz"))) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        killed += process.wait().returncode == -signal.SIGKILL
    assert killed
    job = Job(Config("deit_t", (0.3,), ("lotm", "random"), limit=24, **LIKE), outputs=plain)
    same(finished(job, out), finished(job, tmp_path / "whole"))
    assert not (out / "previous").exists()  # this was the same run


@pytest.mark.slow
def test_sigint_says_how_to_go_on(tmp_path):
    process = command(tmp_path / "printed", tmp_path / "out", "--seed", "3")
    while process.running() and not list((tmp_path / "out").glob("outcomes/*.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # by an impatient hand
    done = process.wait()
    assert done.returncode == 130, done.stderr
    assert "INTERRUPTED after" in " ".join(done.stdout.split())
    assert "Resume with: tokred compare --model deit_t" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def out_of_memory(fits):
    """A forward pass that has room for a number of images; as CUDA or as the CPU says it."""
    embed = engine.ReducedViT.embed

    def limited(self, x, images=None):
        if len(x) > fits:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] CPUAllocator: can't allocate memory: you tried ..."
            )
        return embed(self, x, images)

    return limited


def test_without_memory_batches_are_halved_and_the_rows_say_so(checked, tmp_path, monkeypatch):
    job = tiny_job(batch_size=8)
    with monkeypatch.context() as patch:
        patch.setattr(engine.ReducedViT, "embed", out_of_memory(3))
        small = fresh(job)
        small.open(tmp_path / "small")
        rows = small.run(workers=0).rows
    assert {row.smallest_batch for row in rows} == {2}
    assert all("batches of 2 for lack of memory" in results_table.row_notes(row) for row in rows)
    twos = fresh(checked).run(workers=0)
    assert [row.top1 for row in rows] == [row.top1 for row in twos.rows]
    np.testing.assert_array_equal(small.evaluation.dense.kl, 0)
    monkeypatch.setattr(engine.ReducedViT, "embed", out_of_memory(0))
    with pytest.raises(TokredError, match="too little memory for even one image"):
        fresh(job).run(workers=0)


def test_one_method_without_memory_does_not_take_the_others_along(checked, monkeypatch):
    advance = engine.ReducedViT.advance

    def hungry(self, state, stop=None):
        if self.plan.stages and self.plan.method == "random":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return advance(self, state, stop)

    monkeypatch.setattr(engine.ReducedViT, "advance", hungry)
    rows = {row.method: row for row in fresh(checked).run(workers=0).rows}
    assert (rows["random"].status, rows["lotm"].status) == ("failed", "ok")
    assert "out of memory" in rows["random"].error


def test_a_method_that_cannot_be_timed_keeps_its_row(checked, tmp_path, monkeypatch):
    forward = engine.ReducedViT.forward

    def fails(self, x, attn_mask=None):
        if self.plan.stages and self.plan.method == "random":
            raise ValueError("no image keys")
        return forward(self, x, attn_mask)

    monkeypatch.setattr(engine.ReducedViT, "forward", fails)
    job = fresh(checked)
    job.open(tmp_path)
    rows = {row.method: row for row in job.run(workers=0, bench=1).rows}
    assert (rows["random"].speedup, rows["random"].status) == (None, "ok")
    assert rows["lotm"].speedup > 0


def test_the_path_of_the_data_is_no_part_of_a_run_but_its_files_are(tmp_path, monkeypatch):
    for label in range(10):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (label, 0, 0)).save(
            tmp_path / "data" / str(label) / "a.png", compress_level=0
        )

    def opened(data):
        job = tiny_job(methods=("lotm",), limit=None, data=data, weights="tiny.safetensors")
        notice = job.open(tmp_path / "out")
        job.run(workers=0)
        return notice

    assert opened(str(tmp_path / "data")) == ""
    monkeypatch.chdir(tmp_path)
    assert "was finished on" in opened("./data/")
    Image.new("RGB", (32, 32), (0, 200, 0)).save(
        tmp_path / "data" / "3" / "a.png", compress_level=0
    )  # of the same size
    assert "differs in files. " in opened("data")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(checked, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TokredError, match="cannot be written"):
        fresh(checked).open(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("edited", ["", "method,options\n", None])
def test_what_was_changed_in_a_finished_run_is_written_again(checked, tmp_path, edited):
    whole = finished(checked, tmp_path)
    rows = (tmp_path / "leaderboard.csv").read_text()
    contents = rows.replace("lotm", "tome") if edited is None else edited
    (tmp_path / "leaderboard.csv").write_text(contents)
    (tmp_path / "report.html").write_text("")
    job = fresh(checked)
    assert job.open(tmp_path).endswith(
        "that were changed or removed are written again: leaderboard.csv, report.html."
    )
    job.run(workers=0)
    assert [(tmp_path / name).read_bytes() for name in PLAIN] == whole[0]
    assert (tmp_path / "report.html").stat().st_size


def test_a_finished_run_that_cannot_be_written_is_shown(checked, tmp_path, monkeypatch):
    finished(checked, tmp_path)
    (tmp_path / "table.md").write_text("")  # nothing can be done about that

    def read_only(*arguments):
        raise TokredError("it cannot be written")

    monkeypatch.setattr("tokred.evaluation.folder.check_writable", read_only)
    monkeypatch.setattr("tokred.evaluation.folder.replace_file", read_only)
    job = fresh(checked)
    said = job.open(tmp_path)
    assert "was finished on" in said
    assert said.endswith("stay as they are, since the folder is read-only: table.md.")
    assert {row.method for row in job.run(workers=0).rows} == {"baseline", "lotm", "random", "lowres"}
    (tmp_path / "predictions.npz").write_bytes(b"")
    with pytest.raises(TokredError, match="its predictions are damaged"):
        fresh(checked).open(tmp_path)


def test_a_full_disk_loses_nothing(checked, tmp_path, monkeypatch):
    monkeypatch.setattr("tokred.evaluation.recording._INTERVAL", 0.0)
    whole = finished(checked, tmp_path / "whole")
    write = Path.write_bytes
    job = fresh(checked)
    job.open(tmp_path / "out")
    room = 3

    def full(self, data):
        nonlocal room
        room -= 1
        if room < 0:
            write(self, data[:10])
            raise OSError(28, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(TokredError, match="No space left on device"):
            job.run(workers=0)
    assert len(list((tmp_path / "out" / "outcomes").iterdir())) == 3
    same(finished(checked, tmp_path / "out"), whole)


def test_a_copied_folder_is_another_run_of_its_own(checked, tmp_path):
    whole = finished(checked, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    job = fresh(checked)
    assert "was finished on" in job.open(tmp_path / "b")
    job.run(workers=0)
    assert [(tmp_path / "b" / name).read_bytes() for name in PLAIN] == whole[0]
