"""One pass of the dense model over images, and over the same images with their patches shuffled."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tokred.core.reducer import Rng
from tokred.core.vit import ReducedViT
from tokred.data import loading
from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.evaluation.config import Config
from tokred.evaluation.inputs import open_inputs
from tokred.evaluation.predictions import finite
from tokred.studies.similarity.accumulator import Tally
from tokred.studies.similarity.pairs import Pairs
from tokred.utils.devices import resolve_device, resolve_precision
from tokred.utils.interrupts import Interrupts

Features = Literal["residual", "attention"]

#: In what sense tokens are neighbours. In shuffled images patches change places while the position embedding stays where it is.
SENSES = {
    "both": "neighbours in the picture",
    "position": "neighbours in position only",
    "content": "neighbours in content only",
}


@dataclass
class Measured:
    """What a pass has found.

    Attributes:
        model: as the user gave it.
        data: what the images are, in one phrase, for titles.
        features: which features were compared.
        layers: one-based.
        pairs: the grid and its pairs.
        tallies: a `Tally` on the CPU for each of `SENSES`.
        used: [images] bool, which of the images were readable.
        groups: [images], images that are not independent share a number.
        seed: of shuffles and intervals.
        about: provenance, for run.json.
    """

    model: str
    data: str
    features: Features
    layers: tuple[int, ...]
    pairs: Pairs
    tallies: dict[str, Tally]
    used: np.ndarray
    groups: np.ndarray
    seed: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Model and data, in one line."""
        return f"{self.model} on {self.data}"

    @property
    def images(self) -> int:
        """How many were looked at."""
        return int(self.used.sum())


class Study:
    """Similarities of tokens after the attention of each layer, of which LoTM's Fig. 1 is the first.

    Args:
        config: model, data and how to run; what it says of methods and budgets plays no part.
        layers: one-based; all by default.
        features: "residual" for the tokens that LoTM compares and merges, after the attention and its residual; "attention" for what
            the attention adds to them.

    Raises:
        TokredError: anything wrong with the configuration, before any image is read.
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
        self.batch_size = config.batch_size or (16 if self.device.type == "cpu" else 256)
        inputs = open_inputs(config)
        self.source, self.loaded, self.preparation = inputs.source, inputs.loaded, inputs.preparation
        self.dense = ReducedViT(self.loaded.model)
        self.layers = _chosen(layers, self.dense.depth, config.model)
        self.pairs = Pairs.of(*self.loaded.model.patch_embed.grid_size)
        if self.pairs.tokens < 4:
            raise TokredError(
                f"{config.model} has {self.pairs.tokens} patch tokens, too few to compare neighbours with others; take 4 or more."
            )

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        wanted = (
            "model",
            "split",
            "limit",
            "seed",
            "on_error",
            "labels",
            "img_size",
            "crop_pct",
            "interpolation",
        )
        return {
            **{name: value for name, value in asdict(self.config).items() if name in wanted},
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
        """A short hash of everything that decides the numbers."""
        return hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def data(self) -> str:
        """What the images are, in one phrase."""
        return self._phrase("")

    def _phrase(self, more: str) -> str:
        return f"{self.source.title} {self.source.split} ({'first ' if self.source.limited else ''}{len(self.source)} images{more})"

    def describe(self) -> str:
        """One line: data, weights, layers, precision, device."""
        note = f" {self.source.note}" if self.source.note else ""
        where = f"{self.configuration['precision']} on {self.device}"
        return f"Data: {self.data}. Weights: {self.loaded.weights}. Precision: {where}; similarities float32.{note}"

    def run(
        self, workers: int | None = None, progress: Callable[[int], None] = lambda images: None
    ) -> Measured:
        """Look at all images.

        Args:
            workers: processes that load images, by default one beside a CPU and up to eight beside a GPU.
            progress: hears of each finished batch's images.

        Raises:
            TokredError: an image cannot be read, none can, the model gives numbers that are not finite, or memory does not suffice.
            KeyboardInterrupt: by Ctrl-C.
        """
        start, images = time.monotonic(), len(self.source)
        tallies = {sense: Tally(self.pairs, len(self.layers), images, self.device) for sense in SENSES}
        used, unreadable = np.ones(images, dtype=bool), dict[int, str]()
        self.dense.to(self.device).eval()
        with Interrupts() as interrupts:
            for batch in self._batches(workers):
                self._look(_readable(batch), tallies)
                used[list(batch.unreadable)] = False
                unreadable |= batch.unreadable
                interrupts.check()
                progress(len(batch.indices))
        if not used.any():
            raise TokredError(
                f"None of the {images} images can be read; the first: {next(iter(unreadable.values()))}"
            )
        about = {
            "weights": self.loaded.weights,
            "seconds": round(time.monotonic() - start, 1),
            "unreadable": unreadable,
        }
        data = self._phrase(f", {len(unreadable)} unreadable" if unreadable else "")
        on_cpu = {sense: tally.cpu() for sense, tally in tallies.items()}
        return Measured(
            self.config.model, data, self.features, self.layers, self.pairs, on_cpu, used, self.source.groups, self.config.seed,
            {"configuration": self.configuration, **about},
        )  # fmt: skip

    def _batches(self, workers: int | None) -> Iterator[Batch]:
        on_gpu = self.device.type == "cuda"
        workers = loading.default_workers(on_gpu) if workers is None else workers
        ranges = loading.ranges(len(self.source), self.batch_size)
        return loading.batches(
            self.source, self.preparation, ranges, workers, self.config.on_error, pin=on_gpu
        )

    @torch.inference_mode()
    def _look(self, batch: Batch, tallies: dict[str, Tally]) -> None:
        """Add a batch to the tallies, as it is and shuffled."""
        if not len(batch.indices):
            return
        try:
            images, index = batch.images.to(self.device, non_blocking=True), batch.indices.to(self.device)
            for place, tokens in self._tokens(images):
                tallies["both"].add(place, index, tokens)
            order = shuffle(self.config.seed, index, self.pairs.tokens)
            back = order.argsort(1).unsqueeze(-1)
            for place, tokens in self._tokens(
                permute_patches(images, order, self.pairs.rows, self.pairs.columns)
            ):
                tallies["position"].add(place, index, tokens)
                tallies["content"].add(place, index, tokens.take_along_dim(back, dim=1))
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise TokredError(
                f"{self.device} has no memory for {len(batch.indices)} images at once; choose a smaller --batch-size."
            ) from None

    def _tokens(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The place of each chosen layer and its patch tokens, [B, N, C] float32."""
        device, low = self.device.type, self.dtype != torch.float32
        walk = self._walk(images)
        while True:
            with torch.autocast(
                device, dtype=self.dtype, enabled=low
            ):  # not while the caller computes similarities
                found = next(walk, None)
            if found is None:
                return
            yield found

    def _walk(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        state = self.dense.embed(images)
        for part, after in self.dense.walk(state):
            if after.site == "mid" and after.layer in self.layers:
                tokens = after.x.float() - (state.x.float() if self.features == "attention" else 0)
                if not finite(tokens):
                    raise TokredError(
                        f"The unreduced model gives numbers that are not finite in {part}; check its weights."
                    )
                yield self.layers.index(after.layer), tokens[:, self.dense.num_prefix :]
            state = after
            if (after.layer, after.site) == (self.layers[-1], "mid"):
                return


def shuffle(seed: int, images: Tensor, tokens: int) -> Tensor:
    """A permutation for each image, [B, N], that depends on seed and image alone: place i gets what was at place [i]."""
    drawn = Rng(seed, images).uniform(images.new_empty(len(images), tokens))
    return drawn.argsort(dim=1, stable=True)


def permute_patches(images: Tensor, order: Tensor, rows: int, columns: int) -> Tensor:
    """Images [B, 3, H, W] whose patches, on a grid of rows and columns, have changed places: place i has what was at `order[:, i]`."""
    height, width = images.shape[-2] // rows, images.shape[-1] // columns
    patches = (
        images.unflatten(3, (columns, width))
        .unflatten(2, (rows, height))
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(1, 2)
    )
    moved = patches.take_along_dim(order[:, :, None, None, None], dim=1).unflatten(1, (rows, columns))
    return moved.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _readable(batch: Batch) -> Batch:
    """The batch without images that could not be read."""
    if not batch.unreadable:
        return batch
    kept = torch.tensor([int(index) not in batch.unreadable for index in batch.indices])
    return Batch(batch.images[kept], batch.labels[kept], batch.indices[kept])


def _chosen(layers: Sequence[int] | None, depth: int, model: str) -> tuple[int, ...]:
    """The layers to look at, in order, each once."""
    if layers is None:
        return tuple(range(1, depth + 1))
    wrong = [layer for layer in layers if not 1 <= layer <= depth]
    if wrong or not layers:
        got = str(wrong[0]) if wrong else "none"
        raise TokredError(f"--layers takes layers of {model}, 1 to {depth}; got {got}.")
    return tuple(sorted(set(layers)))
