"""Opening what a configuration names: images, weights and preparation, checked against each other."""

from __future__ import annotations

from tokred.data import preflight, preprocessing, sources
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.evaluation.config import Config
from tokred.models import zoo
from tokred.models.zoo import Loaded


def open_images(config: Config) -> Source:
    """All images that a configuration names.

    Raises:
        TokredError: see `sources.open_source`.
    """
    return sources.open_source(
        config.data,
        config.split,
        labels=config.labels,
        class_map=config.class_map,
        devkit=config.devkit,
        data_dir=config.data_dir,
    )


def open_inputs(config: Config) -> tuple[Source, Loaded, Preparation]:
    """Images, as many as the limit says, the model with weights that fit them, and their preparation for it.

    Raises:
        TokredError: something is missing, or one does not fit the other.
    """
    source = open_images(config)
    loaded = load_weights(config, source)
    aligned = preflight.align(
        source, loaded.model.num_classes, loaded.weights, own=config.weights is not None
    )
    return aligned.limit(config.limit), loaded, prepare(config, loaded, source)


def load_weights(config: Config, source: Source | None) -> Loaded:
    """The model with the weights that the configuration names, or else those that belong to the images.

    Raises:
        TokredError: see `zoo.load_for`.
    """
    default = "pretrained" if source is None else source.weights
    return zoo.load_for(config.model, config.weights, default, config.img_size)


def prepare(config: Config, loaded: Loaded, source: Source | None) -> Preparation:
    """The preparation of images that the configuration names, or else that of the images or the model."""
    own = None if source is None else source.crop_pct
    crop_pct = own if config.crop_pct is None else config.crop_pct
    return preprocessing.prepare(loaded.model, crop_pct, config.interpolation)
