"""Passes of the dense model over images, and over the same images with their patches shuffled."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tokred.core.rng import Rng
from tokred.core.vit import ReducedViT
from tokred.data import loading
from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.evaluation.config import Config
from tokred.evaluation.inputs import open_inputs
from tokred.evaluation.predictions import finite
from tokred.studies.similarity.accumulator import Accumulator
from tokred.studies.similarity.pairs import Pairs
from tokred.utils.devices import autocast, default_batch_size, resolve_device, resolve_precision
from tokred.utils.interrupts import Interrupts

Features = Literal["residual", "attention"]

#: In what sense tokens are neighbours. Shuffling moves patches; the position embedding stays in place.
SENSES = {
    "both": "neighbours in the picture",
    "position": "neighbours in position only",
    "content": "neighbours in content only",
}
_DECISIVE = ("model", "split", "limit", "seed", "on_error", "labels", "img_size", "crop_pct", "interpolation")


@dataclass(frozen=True)
class Measurement:
    """The similarities of one pass.

    Attributes:
        model: name of the model as given by the user.
        data: a phrase about the images, for titles.
        features: the features that were compared.
        layers: one-based layers.
        pairs: the grid and its pairs.
        sums: an accumulator on the CPU for each of `SENSES`.
        readable: [images] bool, False for images that could not be decoded.
        groups: [images]; images that are not independent share a number.
        seed: seed of shuffles and intervals.
        about: provenance, for run.json.
    """

    model: str
    data: str
    features: Features
    layers: tuple[int, ...]
    pairs: Pairs
    sums: dict[str, Accumulator]
    readable: np.ndarray
    groups: np.ndarray
    seed: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The title: model and data."""
        return f"{self.model} on {self.data}"

    @property
    def images(self) -> int:
        """Number of readable images."""
        return int(self.readable.sum())


class Study:
    """Similarities of tokens after the attention of each layer; LoTM's Fig. 1 shows those of the first.

    Args:
        config: model, data and hardware; methods and budgets are not used.
        layers: one-based layers, by default all.
        features: "residual" for the tokens that LoTM compares, after the attention and its residual;
            "attention" for the output of the attention alone.

    Raises:
        TokredError: the configuration is invalid. This is known before any image is read.
    """

    def __init__(
        self, config: Config, layers: Sequence[int] | None = None, features: Features = "residual"
    ) -> None:
        if features not in get_args(Features):
            raise TokredError(f"--features is one of {', '.join(get_args(Features))}; got {features!r}.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TokredError("tokred similarity runs in one process; start it without torchrun.")
        self.config, self.features = config, features
        self.device = resolve_device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self.batch_size = config.batch_size or default_batch_size(self.device)
        self.source, self.loaded, self.preparation = open_inputs(config)
        self.dense = ReducedViT(self.loaded.model)
        self.layers = _check_layers(layers, self.dense.depth, config.model)
        self.pairs = Pairs.of(*self.loaded.model.patch_embed.grid_size)
        if self.pairs.tokens < 4:
            raise TokredError(
                f"{config.model} has {self.pairs.tokens} patch tokens, but 4 are needed; use a larger "
                "--img-size or another model."
            )

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that determines the results."""
        return {
            **{name: getattr(self.config, name) for name in _DECISIVE},
            "layers": list(self.layers),
            "features": self.features,
            "device": self.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "weights_hash": self.loaded.weights_hash,
            "data_hash": self.source.hash,
        }

    @property
    def key(self) -> str:
        """A short hash of the configuration."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()[:8]

    def data(self, unreadable: int = 0) -> str:
        """A phrase about the images."""
        first = "first " if self.source.limited else ""
        rest = f", {unreadable} unreadable" if unreadable else ""
        return f"{self.source.title} {self.source.split} ({first}{len(self.source)} images{rest})"

    def describe(self) -> str:
        """A line about data, weights, precision and device."""
        note = f" {self.source.note}" if self.source.note else ""
        where = f"{self.configuration['precision']} on {self.device}"
        return (
            f"Data: {self.data()}. Weights: {self.loaded.weights}. "
            f"Precision: {where}; similarities float32.{note}"
        )

    def run(
        self, workers: int | None = None, progress: Callable[[int], None] = lambda images: None
    ) -> Measurement:
        """Measure the similarities of all images.

        Args:
            workers: number of processes that load images; by default 1 on a CPU and up to 8 on a GPU.
            progress: function called with the number of images in each finished batch.

        Raises:
            TokredError: images cannot be read, the output of the model is not finite, or memory is too small.
            KeyboardInterrupt: the user pressed Ctrl-C.
        """
        start, images, unreadable = time.monotonic(), len(self.source), dict[int, str]()
        sums = {sense: Accumulator(self.pairs, len(self.layers), images, self.device) for sense in SENSES}
        self.dense.to(self.device).eval()
        ranges, on_gpu = loading.ranges(images, self.batch_size), self.device.type == "cuda"
        batches = loading.batches(
            self.source, self.preparation, ranges, workers, self.config.on_error, on_gpu=on_gpu
        )
        with Interrupts() as interrupts:
            for batch in batches:
                unreadable |= batch.unreadable
                self._add(_readable(batch), sums)
                interrupts.check()
                progress(len(batch.indices))
        if len(unreadable) == images:
            first = next(iter(unreadable.values()))
            raise TokredError(f"None of the {images} images could be read: {first}")
        seconds = round(time.monotonic() - start, 1)
        return Measurement(
            model=self.config.model,
            data=self.data(len(unreadable)),
            features=self.features,
            layers=self.layers,
            pairs=self.pairs,
            sums={sense: accumulator.cpu() for sense, accumulator in sums.items()},
            readable=~np.isin(np.arange(images), list(unreadable)),
            groups=self.source.groups,
            seed=self.config.seed,
            about={
                "configuration": self.configuration,
                "weights": self.loaded.weights,
                "seconds": seconds,
                "unreadable": unreadable,
            },
        )

    @torch.inference_mode()
    def _add(self, batch: Batch, sums: dict[str, Accumulator]) -> None:
        """Add a batch to the accumulators, unshuffled and shuffled."""
        if not len(batch.indices):
            return
        try:
            images, index = batch.images.to(self.device, non_blocking=True), batch.indices.to(self.device)
            for place, tokens in self._tokens(images):
                sums["both"].add(place, index, tokens)
            order = shuffle(self.config.seed, index, self.pairs.tokens)
            back = order.argsort(1).unsqueeze(-1)
            shuffled = permute_patches(images, order, self.pairs.rows, self.pairs.columns)
            for place, tokens in self._tokens(shuffled):
                sums["position"].add(place, index, tokens)
                sums["content"].add(place, index, tokens.take_along_dim(back, dim=1))
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise TokredError(
                f"{self.device} has too little memory for {len(batch.indices)} images at once; "
                "choose a smaller --batch-size."
            ) from None

    def _tokens(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the place of each chosen layer in `layers`, and its patch tokens, [B, N, C] float32."""
        with autocast(self.device, self.dtype):
            before = self.dense.embed(images)
            for part, state in self.dense.walk(before):
                if state.site == "mid" and state.layer in self.layers:
                    tokens = state.x.float() - (before.x.float() if self.features == "attention" else 0)
                    if not finite(tokens):
                        raise TokredError(
                            f"The output of the dense model is not finite in {part}; check its weights."
                        )
                    yield self.layers.index(state.layer), tokens[:, self.dense.num_prefix :]
                    if state.layer == self.layers[-1]:
                        return
                before = state


def shuffle(seed: int, images: Tensor, tokens: int) -> Tensor:
    """A permutation of the tokens of each image, [B, N], which depends on the seed and the image alone."""
    keys = Rng(seed, images).uniform(images.new_empty(len(images), tokens))
    return keys.argsort(dim=1, stable=True)


def permute_patches(images: Tensor, order: Tensor, rows: int, columns: int) -> Tensor:
    """Images [B, 3, H, W] with permuted patches: position i of the grid holds patch `order[:, i]`."""
    height, width = images.shape[-2] // rows, images.shape[-1] // columns
    grid = images.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = patches.take_along_dim(order[:, :, None, None, None], dim=1).unflatten(1, (rows, columns))
    return moved.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _readable(batch: Batch) -> Batch:
    """The batch without its unreadable images."""
    if not batch.unreadable:
        return batch
    mask = torch.tensor([int(index) not in batch.unreadable for index in batch.indices])
    return Batch(batch.images[mask], batch.labels[mask], batch.indices[mask])


def _check_layers(layers: Sequence[int] | None, depth: int, model: str) -> tuple[int, ...]:
    """The chosen layers, sorted and without repetition; all layers for None."""
    if layers is None:
        return tuple(range(1, depth + 1))
    wrong = [layer for layer in layers if not 1 <= layer <= depth]
    if wrong or not layers:
        got = str(wrong[0]) if wrong else "none"
        raise TokredError(f"--layers takes layers of {model}, 1 to {depth}; got {got}.")
    return tuple(sorted(set(layers)))
