"""A comparison with a method whose counts depend on the image: its threshold, its row, and its evidence."""

from unittest import mock

import numpy as np
import pytest
import torch
from helpers.adaptive import Standouts
from PIL import Image

from tokred.core import registry
from tokred.core.calibrate import image_flops
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation import calibration
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config, Fixed
from tokred.models import zoo
from tokred.tables.row import from_csv, to_csv
from tokred.testing import tiny_vit

LOADED = zoo.Loaded(tiny_vit(), "tiny", "random ones", "0" * 64)
OPTIONS = {
    "model": "tiny",
    "budgets": (0.2,),
    "stages": (2, 3),
    "limit": 12,
    "batch_size": 5,
    "methods": ("standouts",),
    "controls": False,
    "precision": "fp32",
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(Standouts, "name", "standouts")
    monkeypatch.setitem(registry._classes, "standouts", Standouts)
    monkeypatch.setattr(calibration, "IMAGES", 24)


def files(job, comparison):
    names = ("table.md", "table.tex", "pareto.svg", "pareto.png", "report.html")
    csv = {"leaderboard.csv": to_csv(comparison.rows), "predictions.npz": job.predictions().pack()}
    return {**dict.fromkeys(names, comparison.title), **csv}


def a_job(**changes):
    with mock.patch.object(zoo, "load_for", return_value=LOADED):
        return Job(Config(**{**OPTIONS, **changes}), outputs=files)


@pytest.mark.slow
def test_the_row_has_the_means_over_the_test_images_of_what_each_costs_alone(tmp_path):
    job = a_job()
    job.open(tmp_path)
    (_, row) = job.run(workers=0).rows
    model = job.models["standouts"]
    assert row.knob == f"{model.plan.knob:.4g}"
    assert row.budget == 0.2
    with torch.inference_mode():
        images = [job.preparation.transform(job.source.images[i][0])[None] for i in range(12)]
        tokens = np.concatenate([model.run(image).counts.numpy() for image in images])
        alone = torch.cat([model(image) for image in images]).argmax(1)
    flops, _ = image_flops(job.costs, model.plan, tokens)
    assert np.array_equal(job.evaluation.methods["standouts"].tokens, tokens)
    assert np.array_equal(job.evaluation.methods["standouts"].prediction, alone.numpy())
    assert row.gflops == pytest.approx(flops.mean() / 1e9)
    assert row.gflops_sd == pytest.approx(flops.std() / 1e9)
    assert row.gflops_lo <= row.gflops <= row.gflops_hi
    assert row.reduction == pytest.approx(1 - flops.mean() / job.costs.dense)
    assert row.tokens == " ".join(str(round(mean)) for mean in tokens.mean(0))
    assert from_csv(to_csv([row]))[0].gflops_sd == pytest.approx(row.gflops_sd)

    again = a_job()  # resumed, it computes the same row from what is stored
    assert "finished" in again.open(tmp_path)
    assert again.run(workers=0).rows[1] == row


@pytest.mark.slow
def test_images_of_the_calibration_are_not_those_of_the_test():
    job = a_job(budgets=(0.2, 0.3))
    saved = [candidate.match.reduction for candidate in job.candidates]
    assert saved == pytest.approx([0.2, 0.3], abs=0.004)  # of 24 images with few tokens
    knobs = [job.models[name].plan.knob for name in ("standouts@0.2", "standouts@0.3")]
    assert job.configuration["thresholds"] == dict(zip(job.models, knobs, strict=True))
    assert knobs[0] < knobs[1]
    drawn = calibration.Calibration(job.config, LOADED).images
    assert len(torch.cat(drawn)) == 24


def test_a_threshold_that_is_given_is_not_calibrated():
    job = a_job(budgets=(), fixed=(Fixed("standouts", 0.75),))
    assert job.models["standouts@0.75"].plan.knob == 0.75
    (_, row) = job.run(workers=0).rows
    assert row.knob == "0.75"
    assert 0 < row.reduction < 1


def a_folder(path, seed, count=3):
    rng = np.random.default_rng(seed)
    path.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return str(path)


@pytest.mark.slow
def test_images_of_ones_own_are_calibrated_on_images_that_are_named(tmp_path):
    test, other = a_folder(tmp_path / "test", 0), a_folder(tmp_path / "other", 1, 4)
    own = {"data": test, "labels": False, "limit": None}
    with pytest.raises(TokredError, match="with --calibration"):
        a_job(**own)
    with pytest.raises(TokredError, match="holds the images of the test"):
        a_job(**own, calibration=test)
    job = a_job(**own, calibration=other)
    assert job.models["standouts"].plan.knob is not None
    (_, row) = job.run(workers=0).rows
    assert row.status == "ok"
    assert row.gflops_sd > 0


@pytest.mark.slow
def test_a_model_with_a_threshold_shares_its_backbone_with_the_others():
    job = a_job(methods=("standouts", "lotm"))
    assert all(isinstance(model, ReducedViT) for model in job.models.values())
    rows = {row.method: row for row in job.run(workers=0).rows}
    assert rows["lotm"].gflops_sd is None
    assert job.evaluation.methods["lotm"].tokens is None
    assert rows["standouts"].status == rows["lotm"].status == "ok"
