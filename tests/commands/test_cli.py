"""The command line as a whole: errors, help, `tokred match`, and the same from Python."""

import subprocess
import sys

import pytest
import torch
from helpers.command import run

import tokred
from tokred.core import registry
from tokred.models import zoo


@pytest.mark.slow
def test_match_prints_all_methods():
    code, text = run("match", "--model", "deit_t", "--budget", "0.3")
    assert code == 0
    assert all(name in text for name in registry.select())
    code, text = run("match", "--model", "deit_t", "--budget", "0.95", "--methods", "lotm")
    assert code == 2
    code, text = run("match", "--model", "deit_t", "--budget", "0.55", "--methods", "lotm,topk")
    assert code == 1
    assert "topk" in text
    assert "lotm at layers 4 7 11 can save at most" in text


@pytest.mark.slow
def test_errors_as_a_user_sees_them():
    done = subprocess.run(
        [sys.executable, "-m", "tokred", "match", "--budget", "7"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --budget is the fraction")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_what_the_operating_system_refuses_is_one_sentence():
    code, text = run("report", "n" * 300)
    assert code == 2
    assert text == f"Error: {'n' * 300} cannot be used: File name too long.\n"


def test_what_all_methods_refuse_is_said_once():
    code, text = run("match", "--model", "deit_t", "--methods", "lotm,topk", "--stages", "13")
    assert code == 2
    assert text == "Stages must be layers from 1 to 12 of this model, got 13; choose with --stages.\n"


def test_lack_of_memory_is_one_sentence(monkeypatch):
    def starve(*_, **settings):
        torch.empty(2**50)

    monkeypatch.setattr("tokred.core.match.match_each", starve)
    code, text = run("match", "--model", "deit_t")
    assert code == 2
    assert text.startswith("Error: There is not enough memory for this; try fewer images together")


def test_numbers_of_processes_and_rounds_are_bounded():
    for command, option in (("compare", "--workers"), ("compare", "--bench"), ("fit sit", "--chunk")):
        code, text = run(*command.split(), option, "99999999999")
        assert code == 2
        assert f"Invalid value for '{option}'" in text


def test_help_and_methods_do_not_import_torch():
    program = (
        "import sys; from typer.testing import CliRunner; from tokred.cli import app\n"
        "for a in (['--help'], ['methods'], ['compare', '--help']):\n"
        "    assert CliRunner().invoke(app, a).exit_code == 0\n"
        "assert not {'torch', 'timm', 'sklearn', 'pandas', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_from_python(tmp_path):
    done = tokred.compare("deit_t", 0.3, methods=("lotm", "random"), limit=4, batch_size=2, workers=0)
    assert [row.method for row in done.rows][0] == "baseline"
    assert list(done.frame.columns)[0] == "method"
    assert done.out is None
    model = zoo.load_shipped("deit_t").model
    reduced = tokred.reduce(model, "lotm", budget=0.3, order="append")
    defaults = {"weighted": False, "proportional": False, "metric": "x", "curve": "raster", "window": 2}
    assert reduced.plan.options == {"order": "append", **defaults}
    assert reduced.backbone is model
