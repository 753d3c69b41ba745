"""Scripts outside the package, run on small settings."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu.py"


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu(monkeypatch, tmp_path, capsys):
    run(GPU, monkeypatch, "--device", "cpu", "--quick", "--rounds", 2, "--out", tmp_path / "gpu.csv")
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert not table.note.fillna("").str.startswith("failed").any(), capsys.readouterr().out
    assert set(table.part) == {"battery", "attention", "speed"}
    timed = table[table.part == "speed"]
    assert (timed.ms > 0).all()
    assert (timed.speedup[timed.method == "dense"] == 1).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so(monkeypatch):
    with pytest.raises(SystemExit, match="There is no CUDA device; try the script with --device cpu --quick"):
        run(GPU, monkeypatch)


def test_forms_of_proportional_attention_are_equal():
    forms = runpy.run_path(str(GPU))["FORMS"]
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 3, 7, 8))
    size = rng.integers(1, 5, (2, 7)).astype(float)
    weight = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(8)) * size[:, None, None]
    wanted = weight @ v / weight.sum(-1, keepdims=True)
    for form in forms.values():
        found = form(*(torch.from_numpy(part) for part in (q, k, v, size)))
        assert found.numpy() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.slow
def test_the_segmentation_example(monkeypatch, tmp_path, capsys):
    picture = tmp_path / "segmentation.png"
    run(ROOT / "examples" / "segmentation.py", monkeypatch, *("--train", 4, "--test", 3, "--out", picture))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["model", "dense", "lotm", "tome", "kmedoids", "topk"]
    dense, *others = (float(line[1]) for line in lines[1:])
    assert others == pytest.approx([0.7 * dense] * 4, rel=0.01)
    assert all(0 < float(line[2]) <= 100 for line in lines[1:])
    assert Image.open(picture).width > 500


def test_mean_iou_by_hand():
    mean_iou = runpy.run_path(str(ROOT / "examples" / "segmentation.py"))["mean_iou"]
    targets, predicted = torch.tensor([10, 10, 3, 3]), torch.tensor([10, 3, 3, 3])
    assert mean_iou(predicted, targets) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
