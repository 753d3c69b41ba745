"""The patch embedding of a backbone, and one sentence about images that it cannot take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokred.errors import TokredError


def embed_patches(patch_embed: Any, x: Tensor) -> Tensor:
    """Patch tokens of images [B, channels, H, W].

    Raises:
        TokredError: they are not of the shape, dtype or device that the model takes.
    """
    if torch.compiler.is_compiling():  # a graph is made of images that fit
        return patch_embed(x)
    try:
        patches = patch_embed(x)
    except Exception as error:  # looked at only now, so that images that fit cost nothing
        if _fits(patch_embed, x):
            raise
        raise _refusal(patch_embed, x) from error
    if patches.is_meta and not _fits(patch_embed, x):  # images without values go through all weights
        raise _refusal(patch_embed, x)
    return patches


def _refusal(patch_embed: Any, x: Any) -> TokredError:
    return TokredError(f"The model takes images of {_wanted(patch_embed)}; got {_describe(x)}.")


def _fits(patch_embed: Any, x: Any) -> bool:
    """Whether an error must have another reason than the images."""
    weight = getattr(patch_embed.proj, "weight", None)
    if not isinstance(weight, Tensor):
        return True
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != weight.shape[1]:
        return False
    sides, patch = tuple(x.shape[-2:]), patch_embed.patch_size
    if patch_embed.strict_img_size and patch_embed.img_size is not None:
        if sides != tuple(patch_embed.img_size):
            return False
    elif not patch_embed.dynamic_img_pad and any(n % p for n, p in zip(sides, patch, strict=True)):
        return False
    return (x.dtype, x.device, x.layout) == (weight.dtype, weight.device, torch.strided)


def _wanted(patch_embed: Any) -> str:
    """The images that a model takes, in words."""
    weight, size = patch_embed.proj.weight, patch_embed.img_size
    sides = f"{size[0]}, {size[1]}" if patch_embed.strict_img_size and size is not None else "H, W"
    shape = f"[B, {weight.shape[1]}, {sides}]"
    patch = "" if sides != "H, W" else f" with sides in whole patches of {tuple(patch_embed.patch_size)}"
    return f"{_dtype(weight)} {shape}{patch} on {weight.device}"


def _describe(x: Any) -> str:
    """What was given in their place, in words."""
    if not isinstance(x, Tensor):
        return f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
    layout = "" if x.layout == torch.strided else f"{str(x.layout).removeprefix('torch.')} "
    return f"{layout}{_dtype(x)} {list(x.shape)} on {x.device}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
