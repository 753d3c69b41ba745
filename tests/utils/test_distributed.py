"""A comparison in several processes equals that in one: every image counts once, and a failure ends all."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.command import run
from helpers.outputs import plain
from helpers.processes import together
from PIL import Image

from tokred.errors import TokredError
from tokred.evaluation.config import Config
from tokred.models import zoo
from tokred.utils.distributed import Processes

pytestmark = pytest.mark.usefixtures("shared_costs", "plain_outputs")

PLAIN = {"tokred.report.outputs.files": plain}  # for processes of their own
SMALL = (
    "--model",
    "deit_t",
    "--batch-size",
    "2",
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
        timeout=540,
    )


def test_processes_must_be_alike(monkeypatch):
    processes = Processes(torch.device("cpu"))
    monkeypatch.setattr(processes, "share", lambda value: {"data_hash": "first", "seed": 0})
    processes.alike("comparison", {"data_hash": "first", "seed": 0})
    with pytest.raises(TokredError, match="process 0 has another data_hash"):
        processes.alike("comparison", {"data_hash": "second", "seed": 0})


def undated(file):
    """What a file says on any day: the tests of one may end on the next."""
    return re.sub(rb"\d{4}-\d\d-\d\d", b"DATE", file.read_bytes())


def check_the_table_of_one(folder, world, command, done):
    """What processes printed and left in `folder` / "many" is what one process leaves."""
    many, one = folder / "many", folder / "one"
    assert all(process.returncode == 0 for process in done), done[0].stderr[-3000:]
    printed = "".join(process.stdout for process in done)
    assert printed.count("Data: the embedded benchmark") == 1  # one of them speaks
    assert f"in {world} processes" in printed
    code, text = run(*command, "--out", one)
    assert code == 0, text
    for name in ("leaderboard.csv", "table.md"):
        assert undated(many / name) == undated(one / name)
    arrays, expected = (np.load(folder / "predictions.npz") for folder in (many, one))
    for name in set(expected) - {"about"}:
        np.testing.assert_array_equal(arrays[name], expected[name])
    code, text = run(*command, "--out", many)  # and one process finds its own run there
    assert code == 0
    assert "was finished on" in text


@pytest.mark.slow
def test_torchrun_gives_the_table_of_one_process(tmp_path):
    """The launcher and new interpreters, as a user has them; the tests below fork their processes."""
    command = ("compare", *SMALL, "--methods", "lotm", "--no-controls", "--limit", 7)
    done = torchrun(2, *command, "--out", tmp_path / "many")
    check_the_table_of_one(tmp_path, 2, command, [done])


@pytest.mark.slow
@pytest.mark.parametrize("images", [9, 2])
def test_several_processes_give_the_table_of_one(images, tmp_path):
    command = ("compare", *SMALL, "--methods", "lotm,random", "--limit", images)
    done = together(tmp_path / "printed", 3, *command, "--out", tmp_path / "many", settings=PLAIN)
    check_the_table_of_one(tmp_path, 3, command, done)


@pytest.mark.slow
def test_one_process_that_fails_ends_the_run_with_its_error(tmp_path):
    """Also without a launcher that ends the others."""
    for label in range(10):
        (tmp_path / "data" / "val" / str(label)).mkdir(parents=True)
        Image.new("RGB", (64, 64), (label * 20, 0, 0)).save(tmp_path / "data" / "val" / str(label) / "a.png")
    # In the second batch, which is the second process's.
    (tmp_path / "data" / "val" / "3" / "a.png").write_bytes(b"no image")
    command = ("compare", *SMALL, "--methods", "lotm", "--data", tmp_path / "data", "--out", tmp_path / "out")
    weights = ("--weights", zoo.SHIPPED / "deit_t.safetensors")
    first, second = together(tmp_path / "printed", 2, *command, *weights, settings=PLAIN)
    assert second.returncode == 2
    assert "3/a.png cannot be read" in " ".join(second.stderr.split())
    assert first.returncode != 0
    assert not (tmp_path / "out" / "leaderboard.csv").exists()


PAPER = ("--limit", "3", "--batch-size", "2", "--precision", "fp32", "--workers", "0", "--no-controls")


def check_reproduced_by_two(folder, file, command, settings=None):
    """Two processes leave the file that one leaves, and one of them speaks."""
    code, text = run(*command, "--out", folder / "one")
    assert code == 0, text
    settings = {**PLAIN, **(settings or {})}
    many = together(folder / "printed", 2, *command, "--out", folder / "many", settings=settings)
    assert [done.returncode for done in many] == [0, 0], many[0].stderr[-3000:]
    printed = "".join(done.stdout for done in many)
    assert printed.count("Data: ") == text.count("Data: ") > 0
    assert (folder / "many" / file).read_bytes() == (folder / "one" / file).read_bytes()


@pytest.mark.slow
def test_table_1_in_two_processes_is_that_of_one(tmp_path):
    """It is a comparison for each of two models here, one after the other."""
    command = ("reproduce", "table1", *PAPER, "--models", "deit_t,deit_s")
    check_reproduced_by_two(tmp_path, "table1.csv", command)


@pytest.mark.slow
def test_figure_3_in_two_processes_is_that_of_one(tmp_path, monkeypatch):
    name = "tokred.studies.lotm_paper.study.read_config"
    config = Config("deit_t", (0.2, 0.3), ("lotm", "tome", "topk"))
    settings = {name: {"fig3": config}.__getitem__}  # in place of the paper's methods and budgets
    monkeypatch.setattr(name, settings[name])
    check_reproduced_by_two(
        tmp_path, "fig3-flops.svg", ("reproduce", "fig3", *PAPER, "--bench", "0"), settings
    )
