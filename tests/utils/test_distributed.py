"""A comparison in several processes equals that in one: every image counts once, and a failure ends all."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tokred.errors import TokredError
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config
from tokred.models import zoo
from tokred.utils.distributed import Processes

SMALL = (
    "--model",
    "deit_t",
    "--batch-size",
    "2",
    "--methods",
    "lotm,random",
    "--precision",
    "fp32",
    "--workers",
    "0",
)


def torchrun(world, *arguments):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={world}",
        "-m",
        "tokred",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=400,
    )


def test_processes_must_be_alike(monkeypatch):
    processes = Processes(torch.device("cpu"))
    monkeypatch.setattr(processes, "share", lambda value: {"data_hash": "first", "seed": 0})
    processes.alike("comparison", {"data_hash": "first", "seed": 0})
    with pytest.raises(TokredError, match="process 0 has another data_hash"):
        processes.alike("comparison", {"data_hash": "second", "seed": 0})


@pytest.mark.slow
def undated(file):
    """What a file says on any day: the tests of one may end on the next."""
    return re.sub(rb"\d{4}-\d\d-\d\d", b"DATE", file.read_bytes())


@pytest.mark.parametrize(("world", "images"), [(2, 7), (3, 9), (3, 2)])
def test_several_processes_give_the_table_of_one(world, images, tmp_path):
    done = torchrun(world, "compare", *SMALL, "--limit", images, "--out", tmp_path / "many")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Data: the embedded benchmark") == 1  # one of them speaks
    assert f"in {world} processes" in done.stdout
    job = Job(
        Config(model="deit_t", batch_size=2, methods=("lotm", "random"), precision="fp32", limit=images)
    )
    job.open(tmp_path / "one")
    job.run(workers=0)
    for name in ("leaderboard.csv", "table.md"):
        assert undated(tmp_path / "many" / name) == undated(tmp_path / "one" / name)
    many, one = (np.load(tmp_path / name / "predictions.npz") for name in ("many", "one"))
    for name in set(one) - {"about"}:
        np.testing.assert_array_equal(many[name], one[name])
    again = Job(
        Config(model="deit_t", batch_size=2, methods=("lotm", "random"), precision="fp32", limit=images)
    )
    assert "was finished on" in again.open(tmp_path / "many")  # and one process finds its own run there
    again.folder.release()


@pytest.mark.slow
def test_one_process_that_fails_ends_the_run_with_its_error(tmp_path):
    for label in range(10):
        (tmp_path / "data" / "val" / str(label)).mkdir(parents=True)
        Image.new("RGB", (64, 64), (label * 20, 0, 0)).save(tmp_path / "data" / "val" / str(label) / "a.png")
    (tmp_path / "data" / "val" / "3" / "a.png").write_bytes(
        b"no image"
    )  # in the second batch, which is the second process's
    weights = zoo.SHIPPED / "deit_t.safetensors"
    done = torchrun(
        2, "compare", *SMALL, "--data", tmp_path / "data", "--weights", weights, "--out", tmp_path / "out"
    )
    assert done.returncode != 0
    assert "3/a.png cannot be read" in " ".join(done.stderr.split())
    assert not (tmp_path / "out" / "leaderboard.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("target", "file"), [("table1", "table1.csv"), ("fig3", "fig3-flops.svg")])
def test_the_papers_tables_in_several_processes_are_those_of_one(target, file, tmp_path):
    """Table 1 is a comparison for each of two models here, one after the other."""
    small = (
        "reproduce",
        target,
        "--limit",
        "3",
        "--batch-size",
        "2",
        "--precision",
        "fp32",
        "--workers",
        "0",
        "--no-controls",
    )
    small += ("--models", "deit_t,deit_s") if target == "table1" else ("--bench", "0")
    one, many = (
        torchrun(1, *small, "--out", tmp_path / "one"),
        torchrun(2, *small, "--out", tmp_path / "many"),
    )
    assert (one.returncode, many.returncode) == (0, 0), many.stderr[-3000:]
    assert many.stdout.count("3 images") == one.stdout.count("3 images")  # one of them speaks
    assert (tmp_path / "many" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
