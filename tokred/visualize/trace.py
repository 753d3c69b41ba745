"""Tracing tokens: the token that contains each patch of an image after each stage, and the prediction.

`trace` runs models on images, `choose` finds images on which models disagree, `arrays` has the last stage for
a report.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tokred.core.backbone import num_patches
from tokred.core.reduction import Mix, Reduction, compose_labels
from tokred.core.stage import State
from tokred.core.vit import ReducedViT
from tokred.data import loading, preprocessing
from tokred.data.loading import Batch
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.errors import TokredError
from tokred.evaluation.predictions import Evaluation, finite
from tokred.utils.devices import autocast


@dataclass(frozen=True)
class Map:
    """The tokens and predictions of one model on m images.

    Attributes:
        layers: layers of its stages, one-based; empty for a dense model.
        tokens: numbers of patch tokens before the first stage and after each stage; means if they depend on
            the image.
        labels: [m, stages, N0] int64, the token that contains each patch after each stage; -1 if it was
            dropped.
        probabilities: [m, classes] float32; [m, 0] if the model has no classifier.
        soft: whether tokens are mixtures; the label of a patch is then the token with its largest share.
    """

    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    soft: bool = False

    def after(self, layer: int) -> tuple[int, np.ndarray]:
        """The number of tokens after a layer, and the label of each patch there, [m, N0]."""
        done, (m, _, n) = sum(stage <= layer for stage in self.layers), self.labels.shape
        labels = self.labels[:, done - 1] if done else np.broadcast_to(np.arange(n), (m, n))
        return self.tokens[done], labels


@dataclass(frozen=True)
class Traced:
    """The maps of the dense model and of reduced models on m images.

    Attributes:
        index: [m] int64, indices of the images in their source.
        images: [m, H, W, 3] uint8, the prepared images, without pixels outside whole patches.
        truth: [m] int64, their labels; negative if unknown.
        kinds: the kind of each file that is not plain 8-bit colour, by index.
        grid: rows and columns of patches.
        dense: the map of the dense model.
        maps: the maps of the reduced models that did not fail.
        failed: reasons of those that failed, by name.
    """

    index: np.ndarray
    images: np.ndarray
    truth: np.ndarray
    kinds: Mapping[int, str]
    grid: tuple[int, int]
    dense: Map
    maps: dict[str, Map]
    failed: dict[str, str] = field(default_factory=dict)


def load(
    source: Source, preparation: Preparation, index: Sequence[int] | np.ndarray, batch_size: int = 16
) -> Iterable[Batch]:
    """Yield prepared images of a source by index, in batches.

    Raises:
        TokredError: an image cannot be read.
    """
    parts = [list(map(int, index[i : i + batch_size])) for i in range(0, len(index), batch_size)]
    return loading.batches(source, preparation, parts, workers=0)


def trace(
    backbone: Any,
    models: Mapping[str, ReducedViT],
    batches: Iterable[Batch],
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Traced:
    """Run the dense and the reduced models on images; a model that fails does not affect the others.

    Args:
        backbone: the dense model.
        models: reduced models, on the same backbone or on others.
        batches: batches of images, from `load`.
        device: device to run on; the models are moved there.
        dtype: dtype of matrix products; autocast is used unless it is float32.

    Raises:
        TokredError: an image cannot be read, there are no images, or the dense model fails.
    """
    device = device or torch.device("cpu")
    everything = {"": ReducedViT(backbone), **models}
    for model in everything.values():
        model.to(device).eval()
    parts = {name: list[Map]() for name in everything}
    failed, seen = dict[str, str](), list[Batch]()
    for batch in batches:
        images, index = batch.images.to(device), batch.indices.to(device)
        with torch.inference_mode(), autocast(device, dtype):
            for name in [name for name in everything if name not in failed]:
                try:
                    parts[name].append(_follow(everything[name], images, index))
                except (Exception, SystemExit) as error:  # code of a method can raise anything
                    failed[name] = str(error).strip().partition("\n")[0] or type(error).__name__
        if "" in failed:
            raise TokredError(f"The dense model fails: {failed['']}")
        seen.append(batch)
    if not seen:
        raise TokredError("There is no image to show.")
    maps = {
        name: _joined(several, everything[name].adaptive)
        for name, several in parts.items()
        if name not in failed
    }
    return Traced(
        index=np.concatenate([batch.indices.numpy() for batch in seen]),
        images=np.concatenate([pixels(batch.images, backbone) for batch in seen]),
        truth=np.concatenate([batch.labels.numpy() for batch in seen]),
        kinds={index: kind for batch in seen for index, kind in batch.kinds.items()},
        grid=tuple(backbone.patch_embed.grid_size),
        dense=maps.pop(""),
        maps=maps,
        failed=failed,
    )


def pixels(images: Tensor, backbone: Any) -> np.ndarray:
    """Colours [B, H, W, 3] uint8 of prepared images [B, 3, H, W], cropped to whole patches."""
    config = preprocessing.data_config(backbone)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    (rows, columns), patch = backbone.patch_embed.grid_size, backbone.patch_embed.patch_size
    seen = images[:, :, : rows * patch[0], : columns * patch[1]].cpu().float() * std + mean
    return (255 * seen).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def choose(evaluation: Evaluation, count: int) -> np.ndarray:
    """The images on which the models, including the dense one, disagree most, [count] int64 or fewer.

    Disagreement is the number of pairs of models with different predictions. The first image of each label
    comes before the second image of any label, provided that models disagree on it; ties are broken by index.
    Images without predictions, and methods that failed, do not count.
    """
    outcomes = [model for name, model in evaluation.models.items() if name not in evaluation.failed]
    models = np.stack([model.prediction for model in outcomes])  # [K, n]
    pairs = np.sum([(models[k] != models[k + 1 :]).sum(0) for k in range(len(models))], axis=0)
    images = pd.DataFrame({"pairs": pairs, "label": evaluation.labels})[evaluation.readable]
    images = images.sort_values("pairs", ascending=False, kind="stable")
    images = images.assign(alike=images["pairs"] == 0, earlier=images.groupby("label").cumcount())
    order = images.sort_values(["alike", "earlier"], kind="stable").index
    return order[:count].to_numpy(dtype=np.int64)


def arrays(traced: Traced) -> dict[str, np.ndarray]:
    """The tokens after the last stages, as maps.npz stores them.

    The arrays are `index` [m] int64, `images` [m, H, W, 3] uint8, `names` [k] of the models that reduce,
    `labels` [m, k, N0] int16 and `grid` (2,) int64.
    """
    reduced = {name: tokens for name, tokens in traced.maps.items() if tokens.layers}
    n = int(np.prod(traced.grid))
    labels = np.zeros((len(traced.index), len(reduced), n), dtype=np.int16 if n < 2**15 else np.int32)
    for k, tokens in enumerate(reduced.values()):
        labels[:, k] = tokens.labels[:, -1]
    names, grid = np.array(list(reduced), dtype=np.str_), np.array(traced.grid, dtype=np.int64)
    return {"index": traced.index, "images": traced.images, "names": names, "labels": labels, "grid": grid}


def pack(traced: Traced) -> bytes:
    """`arrays` as a compressed npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays(traced))  # type: ignore[arg-type]
    return buffer.getvalue()


def stage_labels(reductions: Sequence[Reduction], batch: int, n: int) -> Tensor:
    """The token of each patch after each reduction, [batch, stages, n] int64; -1 where it was dropped."""
    if not reductions:
        return torch.zeros(batch, 0, n, dtype=torch.long)
    return torch.stack([compose_labels(reductions[: stage + 1]) for stage in range(len(reductions))], dim=1)


def _follow(model: ReducedViT, images: Tensor, index: Tensor) -> Map:
    state: State = model.advance(model.embed(images, index))
    count, stages = num_patches(model.backbone), model.stage_list()
    logits = model.logits(state) if model.backbone.num_classes else images.new_zeros(len(images), 0)
    if not (finite(logits) and finite(state.x)):
        raise TokredError("its output is not finite")
    return Map(
        layers=tuple(stage.layer for stage in stages),
        tokens=(count, *(stage.reducer.keep for stage in stages)),
        labels=stage_labels(state.reductions, len(images), count).cpu().numpy(),
        probabilities=logits.float().softmax(1).cpu().numpy(),
        soft=any(isinstance(reduction, Mix) for reduction in state.reductions),
    )


def _joined(parts: Sequence[Map], adaptive: bool) -> Map:
    """The maps of several batches as one; with `adaptive` the counts depend on the image."""
    labels, probabilities = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "probabilities")
    )
    soft, tokens = any(part.soft for part in parts), parts[0].tokens
    if adaptive:
        tokens = (tokens[0], *(labels.max(2) + 1).mean(0).round().astype(int).tolist())
    return replace(parts[0], labels=labels, probabilities=probabilities, soft=soft, tokens=tokens)
