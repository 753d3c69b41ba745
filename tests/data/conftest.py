"""Images and weights in ImageNet's layout."""

import io

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from helpers.imagenet import WNIDS, val
from PIL import Image

RNG = np.random.default_rng(0)


@pytest.fixture(scope="session")
def jpeg():
    made = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(made, "JPEG")
    return made.getvalue()


@pytest.fixture
def put(jpeg):
    def put(*paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)

    return put


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A random model of 1,000 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    safetensors.torch.save_file(
        {key: value.half() for key, value in timm.create_model("deit_tiny_patch16_224").state_dict().items()},
        path,
    )
    return path


@pytest.fixture(scope="session")
def thousand(tmp_path_factory, jpeg):
    root = tmp_path_factory.mktemp("whole") / "val"
    for number, wnid in enumerate(WNIDS, 1):
        (root / wnid).mkdir(parents=True)
        (root / wnid / val(number)).write_bytes(jpeg)
    return root
