"""Which models of timm work with tokred, what they cost, and why others do not; nearest names.

Models are built without memory on PyTorch's meta device, once for each version of timm, torch and tokred;
results are kept in the user's cache folder.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from timm.models import model_entrypoint
from torch import nn

from tokred import __version__
from tokred.core.backbone import check_supported, num_patches, pools_prefix
from tokred.errors import UnsupportedModel
from tokred.utils import cache as cache_files

_MODULES = ("vision_transformer", "deit", "eva")  # of timm, whose models are VisionTransformers or Evas
_NORM = 5  # FLOPs of a LayerNorm for each element, as fvcore counts


class Entry(NamedTuple):
    """One model of timm.

    Attributes:
        name: timm's name, without a tag.
        patches: patch tokens of an image of the model's own size; None where it does not work.
        gflops: FLOPs of the dense model in 10^9 multiply-accumulates; None where it does not work.
        reason: why it does not work; empty where it does.
    """

    name: str
    patches: int | None = None
    gflops: float | None = None
    reason: str = ""


@cache
def family() -> tuple[str, ...]:
    """timm's names of all models of the ViT family, whether tokred supports them or not."""
    return tuple(name for module in _MODULES for name in timm.list_models(module=module))


def suggest(name: str, known: Sequence[str] = ()) -> list[str]:
    """Names of ViT models near an unknown one, those that begin like it, 16 x 16 patches at 224 pixels first.

    >>> suggest("vit_tiny")[0]
    'vit_tiny_patch16_224'
    """
    names = [*known, *family()]
    starts = difflib.get_close_matches(name, {other[: len(name)] for other in names}, n=3, cutoff=0.7)
    near = [other for other in names if other[: len(name)] in starts]
    near.sort(
        key=lambda other: (starts.index(other[: len(name)]), not other.endswith("_patch16_224"), len(other))
    )
    return near[:3]


def find(pattern: str | None = None) -> list[str]:
    """timm's names that match a pattern such as "vit_*_224"; text without a wildcard may stand anywhere."""
    if pattern is None:
        return list(family())
    return list(timm.list_models(pattern if set("*?[") & set(pattern) else f"*{pattern}*"))


def catalog(names: Sequence[str], progress: Callable[[int], None] = lambda models: None) -> list[Entry]:
    """What tokred can do with some of timm's models, from the cache where it is known.

    Args:
        names: timm's names.
        progress: callback with the number of models that are done.
    """
    file = f"models-{__version__}-timm-{timm.__version__}-torch-{torch.__version__}.json"
    stored = cache_files.read(file).items()
    known = {name: facts for name, facts in stored if len(facts) == len(Entry._fields) - 1}
    before = len(known)
    for name in names:
        if name not in known:
            known[name] = list(examine(name)[1:])
        progress(1)
    if len(known) > before:
        cache_files.write(file, known)
    return [Entry(name, *known[name]) for name in names]


def examine(name: str) -> Entry:
    """Build one of timm's models without memory and see whether tokred can reduce it."""
    module = model_entrypoint(name).__module__.rpartition(".")[2]
    if module not in _MODULES:
        reason = (
            f"timm's {module} has no standard VisionTransformer or Eva, which make tokens of patches and let "
            "every layer see all of them."
        )
        return Entry(name, reason=reason)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name, **outline_options(name))
        check_supported(model)
        return Entry(name, num_patches(model), round(flops(model) / 1e9, 4))
    except UnsupportedModel as error:
        return Entry(name, reason=str(error))
    except Exception as error:  # one model of timm that cannot be built must not hide the others
        return Entry(name, reason=f"It cannot be built: {type(error).__name__}: {error}")


def outline_options(name: str) -> dict[str, Any]:
    """Options with which timm builds a model faster, because its weights do not matter."""
    module = model_entrypoint(name).__module__.rpartition(".")[2]
    return {"weight_init": "skip"} if module in ("vision_transformer", "deit") else {}


def flops(model: Any) -> int:
    """FLOPs of a supported dense model by the sizes of its layers; `CostTable.dense` traces the same."""
    n = num_patches(model)
    tokens = n + model.num_prefix_tokens
    attention = sum(2 * tokens**2 * block.attn.num_heads * block.attn.head_dim for block in model.blocks)
    pooled = sum(_layers(part, 1) for part in (model.fc_norm, model.head))
    body = sum(_layers(part, tokens) for part in (model.norm_pre, model.blocks, model.norm))
    if model.attn_pool is not None:
        pooled += _pool(model.attn_pool, tokens if pools_prefix(model) else n)
    return _layers(model.patch_embed, n) + body + attention + pooled


def _pool(pool: Any, tokens: int) -> int:
    """FLOPs of attention pooling, whose one query sees some tokens."""
    keys_and_values = _layers(pool.kv, tokens) + 2 * tokens * pool.num_heads * pool.head_dim
    return keys_and_values + sum(_layers(part, 1) for part in (pool.q, pool.proj, pool.norm, pool.mlp))


def _layers(part: nn.Module, tokens: int) -> int:
    """FLOPs of linear layers, patch convolutions and norms on some tokens."""
    total = 0
    for module in part.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            total += tokens * module.weight.numel()
        elif isinstance(module, nn.LayerNorm):
            total += _NORM * tokens * module.weight.numel()
    return total
