"""Progress in a pipe is lines with the figures so far; foreign text is printed as it is."""

import io
import sys
import types

import numpy as np
import pytest
from helpers.command import run
from rich.console import Console

from tokred.commands import console
from tokred.core import registry
from tokred.evaluation.predictions import Evaluation, Failure
from tokred.evaluation.running import running_scores


@pytest.fixture
def printed(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=text, width=200, emoji=False))
    return text


def test_lines_in_a_pipe_come_at_once_and_then_every_30_seconds(printed, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    values = iter(("90.00", "91.00", "92.00"))
    figures = lambda: [("baseline", next(values), "80.0 to 95.0")]  # noqa: E731
    with console.Progress(100, "images", 0, figures, ("So far", "Top-1", "")) as advance:
        for now[0] in (10.0, 20.0, 41.0, 50.0):
            advance(17)
        now[0] = 60.0
        advance(34)  # the share of other processes is an estimate, which may come to more than there is
    lines = printed.getvalue().splitlines()
    assert lines[0] == "17 of 100 images, 0:00:10 elapsed, 0:00:49 remaining; Top-1 so far: baseline 90.00"
    assert [line.partition(",")[0] for line in lines[1:]] == ["51 of 100 images", "100 of 100 images"]
    assert lines[-1].endswith("baseline 92.00")  # the last figures are those of all images


def test_a_line_has_the_first_figures_before_a_unit_is_done(printed, monkeypatch):
    now, rows = [0.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Progress(100, "images", 0, lambda: list(rows), ("So far", "Top-1", "")) as advance:
        for now[0] in (3.0, 6.0):  # nothing to print
            advance(0)
        rows.append(("topk", "93.75", "80.0 to 99.0"))
        for now[0] in (12.0, 23.0):
            advance(0)
        now[0] = 40.0
        advance(16)
    lines = printed.getvalue().splitlines()
    assert lines[0] == "0 of 100 images, 0:00:12 elapsed; Top-1 so far: topk 93.75"
    assert [line.partition(",")[0] for line in lines[1:]] == ["16 of 100 images"] * 2


def test_a_job_that_was_done_before_prints_no_line(printed):
    with console.Progress(4, "steps", 4) as advance:
        advance(0)
    assert not printed.getvalue()


def test_names_of_emojis_markup_and_escapes_are_printed_as_they_are(printed):
    console.say("runs/:x:/[red]a\x1b[2J", console.err, "Warning:", "yellow")
    assert printed.getvalue() == "Warning: runs/:x:/[red]a\\x1b[2J\n"


def test_scores_so_far_are_means_over_the_images_that_are_done():
    evaluation = Evaluation.empty(6, ["bad", "good", "failed"])
    evaluation.labels[:] = 1
    evaluation.done[:4] = True
    evaluation.dense.prediction[:4] = 1
    evaluation.methods["good"].prediction[:4] = [1, 1, 1, 0]
    evaluation.methods["bad"].prediction[:4] = [1, 0, 0, 0]
    evaluation.fail("failed", Failure(0, "no"))
    source = types.SimpleNamespace(labelled=True, groups=np.arange(6))
    job = types.SimpleNamespace(evaluation=evaluation, source=source)
    scores = running_scores(job)
    assert [row[:2] for row in scores] == [("baseline", "100.00"), ("good", "75.00"), ("bad", "25.00")]
    assert scores[0][2] == "100.0 to 100.0"
    source.labelled = False  # then it is the agreement with the dense model
    assert [row[:2] for row in running_scores(job)] == [("good", "75.00"), ("bad", "25.00")]


def test_before_a_batch_is_done_scores_are_those_of_the_methods_that_have_run():
    evaluation = Evaluation.empty(6, ["first", "second"])
    evaluation.labels[:4] = 1
    evaluation.methods["first"].prediction[:4] = [1, 1, 0, 0]
    source = types.SimpleNamespace(labelled=True, groups=np.arange(6))
    job = types.SimpleNamespace(evaluation=evaluation, source=source)
    assert [row[:2] for row in running_scores(job)] == [("first", "50.00")]
    source.labelled = False  # there is nothing to agree with yet
    assert running_scores(job) == []


def test_nothing_done_has_no_scores():
    source = types.SimpleNamespace(labelled=True, groups=np.arange(2))
    assert running_scores(types.SimpleNamespace(evaluation=Evaluation.empty(2, ["a"]), source=source)) == []


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("raise SystemExit(0)", "SystemExit 0"),
    ],
)
def test_a_method_of_a_broken_package_is_listed_with_its_error(source, error, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text(f"{source}\n")
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    about = tmp_path / "broken_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tokred.methods]\nbroken = broken_module:Method\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, text = run("methods", "--format", "csv")
    assert code == 0
    assert "broken of the plugin broken-package (broken_module:Method) is broken: " in text
    code, text = run("match", "--model", "deit_t", "--methods", "topk,broken", "--format", "csv")
    assert code == 1
    assert "\ntopk," in text
    assert error in text
    code, text = run("check", "broken")
    assert code == 2
    assert "broken-package" in text
    assert registry.error_of("topk") == ""


def flat(text):
    """The words of a panel in one line."""
    return " ".join(text.replace("│", " ").split())


def test_outputs_of_the_wrong_kind_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for command in (
        ("compare",),
        ("sweep",),
        ("fit", "sit"),
        ("train",),
        ("similarity",),
        ("reproduce", "fig3"),
    ):
        code, text = run(*command, "--out", tmp_path / "file")
        assert code == 2
        assert "--out" in text
        assert "is a file" in flat(text)
    code, text = run("bench", "--out", tmp_path)
    assert (code, "is a directory" in flat(text)) == (2, True)
