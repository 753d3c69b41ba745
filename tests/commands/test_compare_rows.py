"""What rows of `tokred compare` say of images, options, own data, and methods out of reach or not fitted."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.command import run
from PIL import Image

from tokred.models import zoo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_costs", "plain_outputs")]

SMALL = ("--model", "deit_t", "--limit", "6", "--batch-size", "3", "--workers", "0", "--precision", "fp32")


def test_unreadable_images_skipped_or_counted(tmp_path, odd_images):
    arguments = (
        "--model",
        "deit_t",
        "--data",
        odd_images,
        "--weights",
        zoo.SHIPPED / "deit_t.safetensors",
        *("--methods", "lotm", "--no-controls", "--workers", "0"),
    )
    tables = {}
    for mode in ("skip", "count-wrong"):
        code, text = run(
            "compare", *arguments, "--on-error", mode, "--batch-size", "4", "--out", tmp_path / mode
        )
        assert code == 0, text
        tables[mode] = pd.read_csv(tmp_path / mode / "leaderboard.csv")
        found = json.loads((tmp_path / mode / "run.json").read_text())
        assert {name for text in found["unreadable"].values() for name in BROKEN if name in text} == set(
            BROKEN
        )
        assert len(found["unreadable"]) == len(BROKEN)
        assert found["kinds"] == {"16-bit": 1, "CMYK": 1, "EXIF rotation ignored": 1, "greyscale": 1}
        assert f"{len(BROKEN)} images unreadable" in (tmp_path / mode / "table.md").read_text()
    skip, wrong = tables["skip"], tables["count-wrong"]
    assert (skip.n_images == 10).all()
    assert (wrong.n_images == 10 + len(BROKEN)).all()
    assert (wrong.n_failed == len(BROKEN)).all()
    assert (skip.n_failed == len(BROKEN)).all()
    np.testing.assert_allclose(wrong.top1 * wrong.n_images, skip.top1 * skip.n_images)  # as many right
    assert wrong.agreement[1] == skip.agreement[1]
    for workers in ("0", "1"):
        code, text = run("compare", *arguments, "--out", tmp_path / "fail", "--workers", workers)
        assert code == 2
        assert "cannot be read" in text
    code, text = run("compare", *arguments, "--on-error", "ignore", "--out", tmp_path / "fail")
    assert code == 2
    assert "Unknown --on-error 'ignore'" in text


BROKEN = ("zero.png", "cut.jpg", "text.png", "cut.png")


@pytest.fixture
def odd_images(tmp_path):
    """Ten classes with a good image each, some of an odd kind, and four files that are no images."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data" / "val"
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        image, options = Image.fromarray(pixels), {}
        if label == 1:
            image = image.convert("L")
        if label == 2:
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if label == 3:
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = 6
        if label == 4:
            image = image.convert("CMYK")
        image.save(root / str(label) / ("a.jpg" if label == 4 else "a.png"), **options)
    (root / "5" / "zero.png").write_bytes(b"")
    (root / "6" / "text.png").write_text("no image")
    (root / "9" / "cut.png").write_bytes((root / "0" / "a.png").read_bytes()[:-300])
    (root / "7" / "cut.jpg").write_bytes((root / "4" / "a.jpg").read_bytes()[:-300])
    return tmp_path / "data"


def test_an_unreachable_method_is_a_row_and_the_others_go_on(tmp_path):
    code, text = run("compare", *SMALL, "--budget", "0.55", "--methods", "lotm,random", "--out", tmp_path)
    assert code == 1
    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method")
    assert table.status.to_dict() == {"baseline": "ok", "random": "ok", "lowres": "ok", "lotm": "unreachable"}
    assert "can save at most" in table.error["lotm"]
    assert np.isnan(table.top1["lotm"])
    assert "can save at most" in text


def test_options_are_in_the_row(tmp_path):
    code, _ = run(
        "compare",
        *SMALL,
        "--methods",
        "lotm",
        "--set",
        "lotm.order=append",
        "--stages",
        "4 7 10",
        "--out",
        tmp_path,
    )
    assert code == 0
    row = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method").loc["lotm"]
    assert (row.options, row.stages, row.protocol) == (
        "order=append weighted=False proportional=False metric=x curve=raster window=2",
        "4 7 10",
        "custom",
    )


ELSEWHERE = ("--methods", "lotm,sit", "--stages", "3 6 9")


def test_an_unfitted_method_has_no_accuracy_but_the_command_that_fits_it(tmp_path):
    code, text = run("compare", *SMALL, *ELSEWHERE, "--out", tmp_path)
    assert code == 0
    row = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method").loc["sit"]
    assert (row.status, np.isnan(row.top1), np.isnan(row.agreement)) == ("unfitted", True, True)
    assert row.error.startswith("not fitted: run `tokred fit sit --model deit_t --stages '3 6 9'`")
    assert "it was fitted at layers 4 7 10, not at 3 6 9" in row.error
    assert "not fitted: run \\`tokred fit sit" in (tmp_path / "table.md").read_text()  # shown, not formatted
    code, text = run("compare", *SMALL, "--methods", "sit", "--stages", "3 6 9", "--out", tmp_path / "alone")
    assert code == 2
    assert "not fitted: run `tokred fit sit" in text


def test_allow_unfitted_marks_the_row(tmp_path):
    code, _ = run("compare", *SMALL, *ELSEWHERE, "--allow-unfitted", "--out", tmp_path)
    assert code == 0
    row = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method").loc["sit"]
    assert (row.status, bool(row.unfitted), row.training) == ("ok", True, "none")
    assert "unfitted: random parameters, no result" in (tmp_path / "table.md").read_text()


OWN_IMAGES = (
    "--model",
    "deit_t",
    "--weights",
    zoo.SHIPPED / "deit_t.safetensors",
    "--workers",
    "0",
    "--methods",
    "lotm",
)


def test_a_folder_of_ones_own_images(tmp_path):
    for label in range(10):
        (tmp_path / "data" / "val" / str(label)).mkdir(parents=True)
        Image.new("RGB", (64, 80), (label * 20, 0, 0)).save(tmp_path / "data" / "val" / str(label) / "a.png")
    code, text = run("compare", *OWN_IMAGES, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 0, text
    row = pd.read_csv(tmp_path / "out" / "leaderboard.csv").loc[0]
    assert (row.dataset, row.split, row.n_images, row.crop_pct) == ("data", "validation", 10, 0.9)
    assert not row.limited


def test_a_split_that_is_not_there(tmp_path):
    for split in ("train", "test"):
        for label in range(10):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(tmp_path / split / str(label) / "a.png")
    arguments = (*OWN_IMAGES, "--data", tmp_path)
    for extra in ([], ["--split", "tset"]):
        code, text = run("compare", *arguments, *extra, "--out", tmp_path / "out")
        assert code == 2
        assert "(there are: test, train)" in text
    code, text = run("compare", *arguments, "--split", "test", "--out", tmp_path / "out")
    assert code == 0
    assert "test split, 10 images" in text
