"""Images on which thresholds are calibrated, and what image-dependent counts cost on the images of a test."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.core.calibrate import calibrate, image_flops
from tokred.core.costs import CostTable
from tokred.core.match import Match
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.data import folders, loading, photodigits, sources, timm_datasets
from tokred.data.source import Source
from tokred.errors import TokredError
from tokred.evaluation.config import Config
from tokred.evaluation.inputs import prepare
from tokred.evaluation.metrics import group_sums, interval
from tokred.models.zoo import Loaded
from tokred.utils.devices import autocast
from tokred.utils.text import spaced

IMAGES = 256  # on which a threshold is calibrated
_BATCH = 16


class Calibration:
    """Sets thresholds on images that are not those of the test; they are loaded when the first one is set.

    Args:
        config: names the images; by default PhotoDigits' training images for PhotoDigits, and none elsewhere.
        loaded: the dense model.
        test: hash of the test images, which are refused.
        device: device to run on.
        dtype: dtype of matrix products, as in the test.
    """

    def __init__(
        self,
        config: Config,
        loaded: Loaded,
        test: str = "",
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.loaded, self.test, self.dtype = config, loaded, test, dtype
        self.device = device or torch.device("cpu")

    @cached_property
    def images(self) -> list[Tensor]:
        """Batches of prepared images, spread evenly over those that are named.

        Raises:
            TokredError: no images are named, or they are those of the test.
        """
        images, source = self._open()
        if source.images_hash == self.test:
            raise TokredError(
                f"{self.config.calibration} holds the images of the test; calibrate on others, such as "
                "training images."
            )
        data = loading.Indexed(images, prepare(self.config, self.loaded, source).transform)
        chosen = np.unique(np.linspace(0, len(images) - 1, IMAGES).astype(int)).tolist()
        items = [data[index] for index in chosen]
        unreadable = next((item for item in items if isinstance(item, loading.LoadError)), None)
        if unreadable is not None:
            raise unreadable.error
        stacked = torch.stack([item.image for item in items if isinstance(item, loading.Item)])
        return [batch.to(self.device) for batch in stacked.split(_BATCH)]

    def _open(self) -> tuple[Any, Source]:
        """The images, and the source whose preparation is theirs."""
        named, data = self.config.calibration, self.config.data
        if sources.is_photodigits(data if named is None else named):
            train = photodigits.PhotoDigits("train", length=IMAGES)
            return train, sources.open_source(None, "validation")
        if named is None:
            raise TokredError(
                "How many tokens this method removes depends on the image; name training or unlabelled "
                "images to set its threshold on, with --calibration."
            )
        train_split = timm_datasets.is_name(named) or (
            folders.splits_in(folders.split_base(Path(named))) & folders.TRAINING_NAMES
        )
        source = sources.open_source(named, "train" if train_split else None, labels=False)
        return source.images, source

    def match(self, model: ReducedViT, costs: CostTable, budget: float) -> Match:
        """Set the threshold of a model; the match has the mean cost of the images. See `calibrate`."""
        model.to(self.device).eval()
        with autocast(self.device, self.dtype):
            return calibrate(model, costs, budget, self.images)


def measured_columns(
    costs: CostTable, plan: Plan, tokens: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Any]:
    """Columns of what a plan whose counts depend on the image costs on the images of a test.

    Args:
        costs: cost table of the dense model.
        plan: the plan.
        tokens: [n, S] tokens of each image after each stage.
        groups: [n] groups of images that are not independent.
        seed: seed of the interval.
    """
    flops, reducers = image_flops(costs, plan, tokens)
    total, count = group_sums(groups, flops, np.ones(len(flops)))
    lo, hi = interval(total, count, seed)
    return {
        "tokens": spaced(tokens.mean(0).round().astype(int)),
        "gflops": float(flops.mean()) / 1e9,
        "gflops_lo": lo / 1e9,
        "gflops_hi": hi / 1e9,
        "gflops_sd": float(flops.std()) / 1e9,
        "reducer_gflops": float(reducers.mean() / 1e9),
        "reduction": 1 - float(flops.mean()) / costs.dense,
    }
