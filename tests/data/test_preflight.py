"""What is noticed before and early in a run: chance, other classes, other preparation."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.command import run
from helpers.imagenet import WNIDS, compare, val

from tokred.data import preflight
from tokred.models import zoo
from tokred.training.fit.data import open_images

pytestmark = pytest.mark.usefixtures("shared_costs")


def test_chance_is_told_from_more():
    assert "right on 0 of 200 images, which is chance with 1,000 classes" in preflight.at_chance(0, 200, 1000)
    assert preflight.at_chance(1, 1000, 1000)
    assert not preflight.at_chance(10, 200, 1000)
    assert not preflight.at_chance(0, 20, 1000)  # too few to tell
    assert not preflight.at_chance(20, 200, 10)  # classes too few to tell


@pytest.mark.slow
def test_a_subset_through_the_command_line(tmp_path, put, weights):
    put(*(tmp_path / "data" / "val" / WNIDS[i] / val(i) for i in (4, 700, 40)))
    code, text = compare(weights, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 0, text
    assert "These are 3 of ImageNet's 1,000 classes" in text.splitlines()[0]
    assert "Input: 96 x 96 pixels, crop 0.9, bicubic." in text.splitlines()[0]
    assert np.load(tmp_path / "out" / "predictions.npz")["labels"].tolist() == [4, 40, 700]
    row = pd.read_csv(tmp_path / "out" / "leaderboard.csv").loc[1]
    assert (row.img_size, row.crop_pct, row.interpolation, row.n_images) == (96, 0.9, "bicubic", 3)
    assert (
        "labels are theirs among the 1,000"
        in (tmp_path / "out" / "report.html").read_text().partition("All columns")[0]
    )
    assert (
        "3 of ImageNet's 1,000 classes" in json.loads((tmp_path / "out" / "run.json").read_text())["notes"][0]
    )


@pytest.mark.slow
def test_a_model_at_chance_is_noticed(tmp_path, thousand, weights):
    code, text = compare(
        weights, "--data", thousand, "--limit", "208", "--batch-size", "104", "--out", tmp_path / "out"
    )
    assert code == 0, text
    assert text.count("which is chance with 1,000 classes") == 1
    assert "chance" in json.loads((tmp_path / "out" / "run.json").read_text())["notes"][1]


@pytest.mark.slow
def test_crop_and_interpolation_are_options_and_part_of_the_run(tmp_path, put, weights):
    put(*(tmp_path / "photos" / "deep" / f"{i}.jpg" for i in range(2)), tmp_path / "photos" / "b.jpg")
    common = ("--data", tmp_path / "photos", "--no-labels", "--out", tmp_path / "out")
    code, text = compare(weights, *common, "--crop-pct", "0.875", "--interpolation", "bilinear")
    assert code == 0, text
    assert "Input: 96 x 96 pixels, crop 0.875, bilinear." in text
    code, text = compare(weights, *common)
    assert "differs in crop_pct, interpolation" in " ".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--crop-pct", "0"], "--crop-pct is a fraction"),
        (["--crop-pct", "87.5"], "--crop-pct is a fraction"),
        (["--interpolation", "bicubik"], "Did you mean: bicubic"),
        (["--img-size", "0"], "--img-size is the side"),
        (
            ["--img-size", "100"],
            "--img-size must be a multiple of the model's patches of 16 pixels, such as 96; got 100",
        ),
        (["--no-labels"], "--no-labels does not apply to PhotoDigits"),
        (["--class-map", "x.txt"], "--class-map does not apply to PhotoDigits"),
        (["--data", "tfds/imagenet2012"], "tfds/ streams images"),
        (["--data", "torch/cifar10"], "needs the folder of its files; set --data-dir"),
        (["--data", "wds/nowhere"], "There is no shard at nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path):
    code, text = run(
        "compare", "--model", "deit_t", "--methods", "lotm", *arguments, "--out", tmp_path / "out"
    )
    assert code == 2
    assert words in text
    assert text.count("\n") == 1


@pytest.mark.slow
def test_the_preflight_by_itself(tmp_path, put, weights, thousand):
    code, text = run("data", thousand, "--model", "deit_t")
    assert code == 0, text
    assert "1,000 of 1,000, images of each: 1" in text
    assert "50 images of each class; this data has 1,000 images for 1,000" in text
    put(*(tmp_path / "data" / name / "a.png" for name in ("x", "y")))
    code, text = run("data", tmp_path / "data", "--model", "deit_t", "--weights", weights)
    assert code == 2
    assert "has 2 classes, but the weights (random.safetensors) have 1000" in text
    assert text.count("\n") == 1
    code, text = run("data", tmp_path / "data", "--model", "deit_t", "--weights", weights, "--no-labels")
    assert (code, "have no labels" in text) == (0, True)
    code, text = run(
        "data", tmp_path / "data", "--model", "deit_t", "--weights", zoo.SHIPPED / "deit_t.safetensors"
    )
    assert (code, "has 2 classes" in text) == (2, True)
    code, text = run("data", "photodigits", "--model", "deit_t")
    assert (code, "tokred's deit_t, trained on PhotoDigits, 10 classes" in text) == (0, True)


def test_a_fit_on_some_of_imagenets_classes_learns_their_labels(tmp_path, put):
    put(*(tmp_path / split / WNIDS[i] / "a.JPEG" for split in ("train", "val") for i in (5, 900)))
    images = open_images(str(tmp_path), 0, 1000)
    assert [images.train[i][1] for i in range(2)] == [5, 900]
    assert [images.validation.images[i][1] for i in range(2)] == [5, 900]
    assert "2 of ImageNet's 1,000 classes" in images.note


@pytest.mark.slow
def test_sizes_of_plans_without_images():
    code, text = run("match", "--model", "deit_t", "--methods", "lotm", "--img-size", "96")
    assert code == 0, text
    assert "0.209 G" in text  # less than a sixth of 1.258
