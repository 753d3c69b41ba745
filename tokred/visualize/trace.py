"""Where tokens go on some images: for every patch, the token that holds it after each stage, and what the model then predicts.

`trace` follows images through models, `choose` finds images that are worth looking at, `pack` keeps the last stage of a few for a report.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.core.reduction import Mix, Reduction, compose_labels
from tokred.core.vit import ReducedViT, State, num_patches
from tokred.data import loading, preprocessing
from tokred.data.loading import Batch
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.errors import TokredError
from tokred.evaluation.predictions import Evaluation, finite


@dataclass(frozen=True)
class Map:
    """What one model does with m images.

    Attributes:
        layers: of its stages, one-based; none of a dense model.
        tokens: patch tokens before the first stage and after each.
        labels: [m, stages, N0] int64, the token that holds each patch after each stage; -1 where it was dropped.
        probabilities: [m, classes] float32; [m, 0] where the model has no classifier.
        soft: whether tokens are mixed: then a patch belongs to the token that has its largest share.
    """

    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    soft: bool = False

    def after(self, layer: int) -> tuple[int, np.ndarray]:
        """Tokens after a layer's stage, and the labels there, [m, N0]: those of the last stage that has run."""
        done = sum(stage <= layer for stage in self.layers)
        n = self.labels.shape[2]
        return self.tokens[done], self.labels[:, done - 1] if done else np.broadcast_to(
            np.arange(n), (len(self.labels), n)
        )


@dataclass(frozen=True)
class Traced:
    """Images on their way through an unreduced model and reduced ones.

    Attributes:
        index: [m] int64, of the images in their source.
        images: [m, H, W, 3] uint8, as the model saw them: prepared, without what lies beyond the last whole patch.
        truth: [m] int64, their labels; negative where unknown.
        kinds: images, by index, whose file is not plain 8-bit colour, with what it is.
        grid: rows and columns of patches.
        dense: of the unreduced model.
        maps: of the others that did not fail.
        failed: why the rest did.
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
    """Prepared images of a source by index, some at a time.

    Raises:
        TokredError: one cannot be read.
    """
    batches = [[int(i) for i in index[start : start + batch_size]] for start in range(0, len(index), batch_size)]
    return loading.batches(source, preparation, batches, workers=0)


def trace(
    backbone: Any,
    models: Mapping[str, ReducedViT],
    batches: Iterable[Batch],
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Traced:
    """Follow images through the unreduced model and through others. One that fails does not take the others along.

    Args:
        backbone: the unreduced model.
        models: on the same backbone or on others.
        batches: of images, as `load` gives them.
        device: where to run; the models are moved there.
        dtype: of matrix products, by autocast unless float32.

    Raises:
        TokredError: an image cannot be read, or there is none.
    """
    device = device or torch.device("cpu")
    everything = {"": ReducedViT(backbone), **models}
    for model in everything.values():
        model.to(device).eval()
    parts: dict[str, list[Map]] = {name: [] for name in everything}
    failed: dict[str, str] = {}
    seen = []
    for batch in batches:
        images, index = batch.images.to(device), batch.indices.to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            for name in [name for name in everything if name not in failed]:
                try:
                    parts[name].append(_follow(everything[name], images, index))
                except Exception as error:  # whatever a method does
                    failed[name] = str(error).strip().partition("\n")[0] or type(error).__name__
        if "" in failed:
            raise TokredError(f"The unreduced model fails: {failed['']}")
        seen.append(batch)
    if not seen:
        raise TokredError("There is no image to show.")
    maps = {name: _joined(found) for name, found in parts.items() if name not in failed}
    return Traced(
        np.concatenate([batch.indices.numpy() for batch in seen]),
        np.concatenate([pixels(batch.images, backbone) for batch in seen]),
        np.concatenate([batch.labels.numpy() for batch in seen]),
        {index: kind for batch in seen for index, kind in batch.kinds.items()},
        tuple(backbone.patch_embed.grid_size),
        maps.pop(""),
        maps,
        failed,
    )


def pixels(images: Tensor, backbone: Any) -> np.ndarray:
    """Prepared images [B, 3, H, W] as colours again, [B, H, W, 3] uint8, without what lies beyond the last whole patch."""
    config = preprocessing.data_config(backbone)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    (rows, columns), patch = backbone.patch_embed.grid_size, backbone.patch_embed.patch_size
    seen = images[:, :, : rows * patch[0], : columns * patch[1]].cpu().float() * std + mean
    return (255 * seen).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def choose(evaluation: Evaluation, count: int) -> np.ndarray:
    """The images on which models, the unreduced one among them, disagree most, [count] int64 or fewer.

    Disagreement is the number of pairs of models with different predictions. One image of each label comes before a second one of any, as
    long as models disagree on it; the lower index wins a tie. Images without predictions, and methods that failed, do not count.
    """
    predictions = [evaluation.dense.prediction]
    predictions += [
        outcomes.prediction for name, outcomes in evaluation.methods.items() if name not in evaluation.failed
    ]
    models = np.stack(predictions)  # [K, n]
    pairs = sum(
        ((models[k] != models[k + 1 :]).sum(0) for k in range(len(models) - 1)),
        np.zeros(models.shape[1], dtype=np.int64),
    )
    index = np.flatnonzero(evaluation.readable)
    index = index[np.argsort(-pairs[index], kind="stable")]
    labels = evaluation.labels[index]
    order = np.argsort(labels, kind="stable")
    starts = np.r_[True, labels[order][1:] != labels[order][:-1]] if len(order) else np.zeros(0, dtype=bool)
    rank = np.empty(len(order), dtype=np.int64)  # the how-manieth of its label each image is
    rank[order] = np.arange(len(order)) - np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    return index[np.lexsort((np.arange(len(index)), rank, pairs[index] == 0))][:count].astype(np.int64)


def pack(traced: Traced) -> bytes:
    """What the last stages come to, as a small npz file.

    Its arrays are `index` [m] int64, `images` [m, H, W, 3] uint8, `names` [k], of those models that reduce, `labels` [m, k, N0] int16 and
    `grid` (2,) int64.
    """
    reduced = {name: found for name, found in traced.maps.items() if found.layers}
    n = int(np.prod(traced.grid))
    labels = np.zeros((len(traced.index), len(reduced), n), dtype=np.int16 if n < 2**15 else np.int32)
    for k, found in enumerate(reduced.values()):
        labels[:, k] = found.labels[:, -1]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, index=traced.index, images=traced.images, names=np.array(list(reduced), dtype=np.str_), labels=labels,
        grid=np.array(traced.grid, dtype=np.int64),
    )  # fmt: skip
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of `pack`, by name.

    Raises:
        ValueError: these are no packed maps.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        m, k, n = arrays["labels"].shape
        whole = (
            len(arrays["index"]) == m == len(arrays["images"]) and len(arrays["names"]) == k and int(arrays["grid"].prod()) == n
            and arrays["images"].dtype == np.uint8 and arrays["images"].shape[3] == 3
        )  # fmt: skip
    except Exception as error:  # whatever a damaged file makes of itself
        raise ValueError("no packed maps") from error
    if not whole:
        raise ValueError("no packed maps")
    return arrays


def stage_labels(reductions: Sequence[Reduction], batch: int, n: int) -> Tensor:
    """The token of each of n patches after each of the reductions, [batch, stages, n] int64; -1 where it was dropped."""
    if not reductions:
        return torch.zeros(batch, 0, n, dtype=torch.long)
    return torch.stack([compose_labels(reductions[: stage + 1]) for stage in range(len(reductions))], dim=1)


def _follow(model: ReducedViT, images: Tensor, index: Tensor) -> Map:
    state: State = model.advance(model.embed(images, index))
    count, stages = num_patches(model.backbone), model.stage_list()
    logits = model.head(state) if model.backbone.num_classes else images.new_zeros(len(images), 0)
    if not (finite(logits) and finite(state.x)):
        raise TokredError("its numbers are not finite")
    return Map(
        tuple(stage.layer for stage in stages),
        (count, *(stage.reducer.keep for stage in stages)),
        stage_labels(state.reductions, len(images), count).cpu().numpy(),
        logits.float().softmax(1).cpu().numpy(),
        any(isinstance(reduction, Mix) for reduction in state.reductions),
    )


def _joined(parts: Sequence[Map]) -> Map:
    first = parts[0]
    labels, probabilities = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "probabilities")
    )
    return Map(first.layers, first.tokens, labels, probabilities, any(part.soft for part in parts))
