"""The files of the study, its figures, and the command."""

import dataclasses
import json
from unittest import mock

import pandas as pd
import pytest
from helpers.command import run
from helpers.similarity import LAYERS, noise, study
from PIL import Image

from tokred.errors import TokredError
from tokred.plots import svg
from tokred.studies.similarity import figures, premise, report
from tokred.studies.similarity.pairs import KINDS
from tokred.studies.similarity.study import SENSES, Study
from tokred.testing import tiny_vit


@pytest.mark.slow
def test_files_say_what_they_are_about(found_smooth, tmp_path):
    measurement, found = found_smooth
    report.write(measurement, found, tmp_path)
    table = pd.read_csv(tmp_path / "similarity.csv")
    assert len(table) == len(LAYERS) * len(SENSES) * len(KINDS)
    assert set(table["model"]) == {"tiny"}
    assert set(table["data"]) == {"made test (12 images)"}
    counts = pd.read_csv(tmp_path / "histograms.csv").groupby(["layer", "neighbours", "kind"])["pairs"].sum()
    for row in table.itertuples():
        assert counts[row.layer, row.neighbours, row.kind] == row.pairs
    about = json.loads((tmp_path / "run.json").read_text())
    assert (about["title"], about["configuration"]["layers"]) == (
        "tiny on made test (12 images)",
        list(LAYERS),
    )
    for name in ("similarity", "layers", "distance"):
        assert "made test (12 images)" in (tmp_path / f"{name}.svg").read_text()
        assert Image.open(tmp_path / f"{name}.png").size[0] > 1000
    report.check_folder(tmp_path)  # its own results it replaces
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(TokredError, match="contains other results"):
        report.write(measurement, found, tmp_path)


@pytest.mark.slow
def test_figures_of_a_grid_of_one_line():
    """Five patches in a line: one window, no square, nothing above anything."""
    model = tiny_vit(img_size=(8, 40))
    measurement = study(model, noise(3, 8, 40), layers=(1,)).run(0)
    assert set(measurement.pairs.kinds) == {"adjacent", "window", "all"}
    found = premise.findings(measurement)
    assert [text.startswith("<?xml") for text in map(svg, figures.figures(measurement, found).values())] == [
        True
    ] * 3
    assert len(report.premise_table(measurement, found).rows) == 1


@pytest.mark.slow
def test_names_of_folders_are_no_formulas(found_smooth):
    measurement, found = found_smooth
    drawn = figures.figures(dataclasses.replace(measurement, data="a$_{b}$ & <c> test"), found)["layers"]
    assert "a$_{b}$ &amp; &lt;c&gt; test" in svg(drawn)


SMALL = ("--model", "deit_t", "--limit", "4", "--workers", "0", "--precision", "fp32", "--layers", "1")


@pytest.mark.slow
def test_the_command_leaves_its_files_and_prints_the_verdict(tmp_path):
    code, text = run("similarity", *SMALL, "--out", tmp_path / "out")
    assert code == 0, text
    assert "deit_t on PhotoDigits test (first 4 images)" in text
    assert "holds" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*report.FILES, "run.json"}
    run_json = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run_json["command"], run_json["images"], run_json["configuration"]["limit"]) == (
        "similarity",
        4,
        4,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--layers", "13"), "--layers takes layers of deit_t, 1 to 12; got 13."),
        (("--layers", "0 1"), "got 0."),
        (("--layers", "one"), '--layers takes layer numbers, such as "4 7 10"'),
        (("--layers", ""), "got none."),
        (("--features", "keys"), "--features is one of residual, attention; got 'keys'."),
        (("--limit", "0"), "--limit is the number of images"),
        (("--data", "/nowhere/at/all"), "No data at '/nowhere/at/all'"),
        (("--split", "train"), "PhotoDigits has the splits"),
        (("--model", "deit_x"), "Unknown model"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    code, text = run("similarity", *SMALL, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert sentence in text
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text('{"configuration": {}}')
    code, text = run("similarity", *SMALL, "--out", tmp_path)
    assert (code, [path.name for path in tmp_path.iterdir()]) == (2, ["run.json"])
    assert "contains other results" in text


def test_an_interrupt_is_one_clean_sentence(tmp_path):
    with mock.patch.object(Study, "run", side_effect=KeyboardInterrupt):
        code, text = run("similarity", *SMALL, "--out", tmp_path / "out")
    assert (code, list((tmp_path / "out").iterdir())) == (130, [])
    assert "Interrupted; nothing was written." in text
