"""The published accuracy of timm's weights on ImageNet-1K, against which the unreduced model is checked.

Where a run is the published evaluation, weights, images and preparation, its baseline must come out the same: what is off there is off in
every row. Where only the preparation differs, figures published for it do not compare, and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from timm.data import ImageNetInfo

from tokred.data.folders import VALIDATION_NAMES
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.models.zoo import Loaded

IMAGES, CLASSES = 50_000, 1000


@dataclass(frozen=True)
class Figure:
    """One line of timm's table: top-1 (%), and how images were prepared for it."""

    top1: float
    img_size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"

    def fits(self, preparation: Preparation) -> bool:
        """Whether images are prepared alike."""
        here = (preparation.img_size, round(preparation.crop_pct, 3), preparation.interpolation)
        return here == (self.img_size, self.crop_pct, self.interpolation)


FIGURES = {
    "deit_tiny_patch16_224.fb_in1k": Figure(72.190),
    "deit_small_patch16_224.fb_in1k": Figure(79.856),
    "deit_base_patch16_224.fb_in1k": Figure(81.980),
}
"""By timm's tagged name of the weights, from results/results-imagenet.csv of huggingface/pytorch-image-models."""


def published(loaded: Loaded, source: Source, preparation: Preparation) -> float | None:
    """The published top-1 (%) of the unreduced model if this run is its published evaluation, else None."""
    figure = FIGURES.get(loaded.published)
    return figure.top1 if figure and is_imagenet_validation(source) and figure.fits(preparation) else None


def note(loaded: Loaded, source: Source, preparation: Preparation) -> str:
    """A sentence where the weights have a published figure that does not compare with this run's; else nothing."""
    figure = FIGURES.get(loaded.published)
    if figure is None or not is_imagenet_validation(source) or figure.fits(preparation):
        return ""
    return (
        f"timm's figure for these weights, {figure.top1:.3f} %, is of {figure.img_size} pixels, crop {figure.crop_pct:g}, "
        f"{figure.interpolation}; at {preparation.img_size}, {preparation.crop_pct:g}, {preparation.interpolation} it does not compare."
    )


def is_imagenet_validation(source: Source) -> bool:
    """Whether these are all images of ImageNet-1K's validation split: by their number, and by the classes' names or the data set's own."""
    if source.limited or len(source) != IMAGES or source.split not in VALIDATION_NAMES:
        return False
    if source.class_names and source.class_names[0] in _wnids():  # others have them in words
        return source.class_names == _wnids()
    return source.classes in (None, CLASSES) and "imagenet-1k" in source.name.lower().replace("_", "-")


def is_imagenet(source: Source) -> bool:
    """Whether these are images of ImageNet-1K's validation split, all or some of them, as far as names can tell.

    Its class folders alone do not: ImageNet-Sketch and others have them, too.
    """
    if not source.labelled or source.origin == "training":
        return False
    named = source.origin == "validation" or "imagenet-1k" in source.name.lower().replace("_", "-")
    return named or is_imagenet_validation(source)


@cache
def _wnids() -> tuple[str, ...]:
    return tuple(ImageNetInfo("imagenet-1k").label_names())
