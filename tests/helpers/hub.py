"""Models and repositories as the Hugging Face hub has them."""

import json

import safetensors.torch
import timm
import torch

REVISION = "0123456789abcdef0123456789abcdef01234567"
TINY = "vit_tiny_patch16_224"
SMALL = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 5}


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return timm.create_model(TINY, **{**SMALL, **changes}).eval()


def config(architecture=TINY, num_classes=5, **changes):
    """A config.json as timm writes it for the hub."""
    pretrained = {
        "tag": "mine",
        "input_size": [3, 48, 48],
        "crop_pct": 0.8,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    pretrained |= {
        "interpolation": "bilinear",
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    arguments = {key: value for key, value in SMALL.items() if key != "num_classes"}
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "model_args": arguments,
        "pretrained_cfg": {**pretrained, **changes},
    }


def in_cache(home, repository, model, settings=None):
    """A repository in the layout of $HF_HOME, as a download leaves it there."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    safetensors.torch.save_file(model.state_dict(), snapshot / "model.safetensors", metadata={"format": "pt"})
    if settings is not None:
        (snapshot / "config.json").write_text(json.dumps(settings))
    return snapshot
