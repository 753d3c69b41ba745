"""Opening the inputs of a configuration: images, weights and preparation, checked against each other."""

from __future__ import annotations

from tokred.data import preflight, preprocessing, sources
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.evaluation.config import Config
from tokred.models import zoo
from tokred.models.zoo import Loaded


def open_images(config: Config) -> Source:
    """Open all images of a configuration; see `sources.open_source`."""
    return sources.open_source(
        config.data,
        config.split,
        labels=config.labels,
        class_map=config.class_map,
        devkit=config.devkit,
        data_dir=config.data_dir,
    )


def open_inputs(config: Config, classifier: bool = True) -> tuple[Source, Loaded, Preparation]:
    """Open the images up to the limit, the model with matching weights, and the preparation of the images.

    Args:
        config: the configuration.
        classifier: whether the model must have a classifier.

    Raises:
        TokredError: something is missing, or images and weights do not match.
    """
    source = open_images(config)
    loaded = load_weights(config, source, classifier)
    own = config.weights is not None
    aligned = preflight.align(source, loaded.model.num_classes, loaded.weights, own)
    return aligned.limit(config.limit), loaded, prepare(config, loaded, source)


def load_weights(config: Config, source: Source | None, classifier: bool = True) -> Loaded:
    """Load the weights in the configuration, or by default those for the images; see `zoo.load_for`."""
    default = "pretrained" if source is None else source.weights
    return zoo.load_for(config.model, config.weights, default, config.img_size, classifier)


def prepare(config: Config, loaded: Loaded, source: Source | None) -> Preparation:
    """The preparation of images in the configuration, or by default that of the images or the model."""
    own = None if source is None else source.crop_pct
    crop_pct = own if config.crop_pct is None else config.crop_pct
    return preprocessing.prepare(loaded.model, crop_pct, config.interpolation)
