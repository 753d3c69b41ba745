"""Oracles for the study of similarities, plain loops over pairs, and studies of tensors in place of files."""

import itertools
import math
from unittest import mock

import numpy as np
import torch
from PIL import Image

from tokred.data import preprocessing, sources
from tokred.evaluation.config import Config
from tokred.models import zoo
from tokred.studies.similarity.study import Study

LAYERS = (1, 3)


def pairs_by_loops(rows, columns):
    """Every kind of pair, from its definition, as a set of (first, second)."""
    n = rows * columns
    found = {"adjacent": {(i, i + 1) for i in range(0, n - 1, 2)}}
    found["window"] = {
        pair for start in range(0, n - 3, 4) for pair in itertools.combinations(range(start, start + 4), 2)
    }
    found["all"] = set(itertools.combinations(range(n), 2))
    found["square"] = set()
    for r, c in itertools.product(range(0, rows - 1, 2), range(0, columns - 1, 2)):
        window = [r * columns + c, r * columns + c + 1, (r + 1) * columns + c, (r + 1) * columns + c + 1]
        found["square"] |= set(itertools.combinations(window, 2))
    found["vertical"] = {(i, i + columns) for i in range(n - columns)}
    return {name: pairs for name, pairs in found.items() if pairs}


def cosine_by_hand(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)))


def tokens_after_attention(model, images, layer, features="residual"):
    """Patch tokens by timm's own modules, block by block, outside tokred."""
    with torch.inference_mode():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        for block in model.blocks[: layer - 1]:
            x = block(x)
        attention = model.blocks[layer - 1].attn(model.blocks[layer - 1].norm1(x))
        x = x + attention if features == "residual" else attention
    return x[:, model.num_prefix_tokens :].numpy()


class Tensors(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __getitem__(self, index):
        image = Image.new("RGB", (1, 1))
        image.tensor = self.images[index]
        return image, 0


def study(model, images, groups=None, layers=LAYERS, features="residual", **settings):
    """A `Study` of images [B, 3, H, W] that are already prepared."""
    groups = np.arange(len(images)) if groups is None else groups
    source = sources.Source(Tensors(images), "made", "test", "0" * 64, groups, None)
    loaded = zoo.Loaded(model, "tiny", "random weights", "1" * 64)
    preparation = preprocessing.Preparation(lambda image: image.tensor, images.shape[-1], 1.0, "bicubic")
    with (
        mock.patch.object(sources, "open_source", return_value=source),
        mock.patch.object(zoo, "load_for", return_value=loaded),
        mock.patch.object(preprocessing, "prepare", return_value=preparation),
    ):
        return Study(Config("tiny", device="cpu", precision="fp32", **settings), layers, features)


def noise(n=5, height=48, width=48, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def smooth(n=12):
    """Images that change slowly: neighbouring patches are alike, distant ones are not."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:48, 0:48] / 48
    waves = [
        np.sin(2 * np.pi * (fx * x + fy * y) + phase)
        for fx, fy, phase in rng.uniform(0.3, 0.9, (3 * n, 3)) * (1, 1, 7)
    ]
    return torch.tensor(np.array(waves).reshape(n, 3, 48, 48) * 3, dtype=torch.float32)


def blind(model):
    """Its tokens are the patches' embeddings and what attention makes of them; positions play no part."""
    with torch.no_grad():
        model.pos_embed.mul_(0)
    return model
