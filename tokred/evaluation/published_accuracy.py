"""The published accuracy of timm's weights on ImageNet-1K, against which the dense model is checked.

If weights, images and preparation of a run are those of the published evaluation, its baseline must have the
published accuracy; a deviation affects every row. If only the preparation differs, the published accuracy
does not apply, and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokred.data import imagenet
from tokred.data.folders import VALIDATION_NAMES
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.models.zoo import Loaded

IMAGES, CLASSES = 50_000, 1000


@dataclass(frozen=True)
class PublishedAccuracy:
    """One row of timm's table of results.

    Attributes:
        top1: top-1 accuracy in per cent.
        img_size: side of the model's input in pixels.
        crop_pct: visible fraction of the resized image's side.
        interpolation: how images were resized.
    """

    top1: float
    img_size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"

    def fits(self, preparation: Preparation) -> bool:
        """Whether a run prepares images in the same way."""
        actual = (preparation.img_size, round(preparation.crop_pct, 3), preparation.interpolation)
        return actual == (self.img_size, self.crop_pct, self.interpolation)


ACCURACIES = {
    "deit_tiny_patch16_224.fb_in1k": PublishedAccuracy(72.190),
    "deit_small_patch16_224.fb_in1k": PublishedAccuracy(79.856),
    "deit_base_patch16_224.fb_in1k": PublishedAccuracy(81.980),
}
"""Accuracies by timm's tagged name of the weights, from its results/results-imagenet.csv."""


def published(loaded: Loaded, source: Source, preparation: Preparation) -> float | None:
    """The published top-1 (%) of the dense model if this run repeats the published evaluation, else None."""
    figure = ACCURACIES.get(loaded.published)
    return figure.top1 if figure and is_imagenet_validation(source) and figure.fits(preparation) else None


def note(loaded: Loaded, source: Source, preparation: Preparation) -> str:
    """A sentence if the weights have a published accuracy that does not apply to this run; else empty."""
    figure = ACCURACIES.get(loaded.published)
    if figure is None or not is_imagenet_validation(source) or figure.fits(preparation):
        return ""
    return (
        f"timm's top-1 for these weights, {figure.top1:.3f} %, was measured at {figure.img_size} pixels, "
        f"crop {figure.crop_pct:g}, {figure.interpolation}; it does not apply to {preparation.img_size} "
        f"pixels, crop {preparation.crop_pct:g}, {preparation.interpolation}."
    )


def is_imagenet_validation(source: Source) -> bool:
    """Whether these are all images of ImageNet-1K's validation split, by their number and by names.

    The names are those of the classes if they are WordNet IDs, or else that of the data set.
    """
    if source.limited or len(source) != IMAGES or source.split not in VALIDATION_NAMES:
        return False
    wnids = imagenet.class_names(CLASSES)
    if source.class_names and source.class_names[0] in wnids:  # other sources have names in words
        return source.class_names == wnids
    return source.classes in (None, CLASSES) and "imagenet-1k" in source.name.lower().replace("_", "-")


def is_imagenet(source: Source) -> bool:
    """Whether these are images of ImageNet-1K's validation split, all or some of them, by their names.

    Its class folders do not suffice: ImageNet-Sketch and others have the same.
    """
    if not source.labelled or source.origin == "training":
        return False
    named = source.origin == "validation" or "imagenet-1k" in source.name.lower().replace("_", "-")
    return named or is_imagenet_validation(source)
