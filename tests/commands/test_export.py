"""`tokred export` as it is typed."""

import json

import pytest
import safetensors.torch
import torch
from helpers.command import run
from helpers.hub import config, small

from tokred.evaluation.export_check import load


@pytest.fixture
def model(tmp_path):
    """The name of a small model in a folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config()))
    safetensors.torch.save_file(small().state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return f"local-dir:{folder}"


@pytest.mark.slow
def test_a_file_is_written_and_checked(model, tmp_path):
    out = tmp_path / "reduced.pt2"
    code, text = run("export", "--model", model, "--stages", "2", "--budget", "0.2", "--out", out, "--check")
    assert code == 0, text
    assert "the class that the model predicts on 64 of 64 images" in " ".join(text.split())
    assert "95 % interval" in text
    assert load(out, "pt2")(torch.zeros(1, 3, 48, 48)).shape == (1, 5)


def test_another_format_is_one_sentence(model, tmp_path):
    code, text = run("export", "--model", model, "--out", tmp_path / "reduced.engine")
    assert code == 2
    assert "onnx or pt2, not as 'engine'" in text
    assert not (tmp_path / "reduced.engine").exists()
