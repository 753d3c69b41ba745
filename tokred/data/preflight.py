"""Checks that images and weights belong together: classes, their order, and the number of ImageNet's files.

What gives wrong labels for certain is an error; what may be intended is a sentence in the source's note,
which the run shows and keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from scipy import stats
from timm.utils.misc import natural_key

from tokred.data import imagenet
from tokred.data.source import Source
from tokred.errors import TokredError
from tokred.utils.text import some

CHANCE_IMAGES, CHANCE_CLASSES = 100, 100  # images that tell chance from more, with so many classes at least
_CHANCE = 0.01


def align(source: Source, classes: int, weights: str = "the model", own: bool = True) -> Source:
    """Map labels to the model's classes, with a note on everything unusual.

    Args:
        source: images, not limited.
        classes: number of classes of the model; 0 if it has no classifier, for which any labels will do.
        weights: one phrase about the weights, for messages.
        own: whether the user chose the weights; timm's own with 1,000 classes are ImageNet's.

    Raises:
        TokredError: the labels are not those of the model.
    """
    if classes < 1:
        knn = " and, with the labels, by their k-NN accuracy" if source.labelled else ""
        return source.noted(
            "The model has no classifier, so methods are compared by the similarity of their features to the "
            f"dense model's{knn}."
        )
    if not source.labelled:
        return source.noted(
            "The images have no labels, so methods are compared by their agreement with the dense model."
        )
    names = source.class_names or ()
    wnids = [name for name in names if imagenet.is_wnid(name)]
    if wnids and len(wnids) == len(names):
        source = _noted_imagenet(_align_wnids(source, classes, weights))
    elif len(wnids) > len(names) / 2:
        others = [name for name in names if name not in wnids]
        raise TokredError(
            f"{source.name} has folders that are not ImageNet classes: {some(others)}; move them elsewhere."
        )
    elif source.sorted:
        _check_count(source, classes, weights)
        source = _noted_order(source, classes, own)
    _check_count(source, classes, weights)
    _check_range(source, classes, weights)
    return source


def _check_count(source: Source, classes: int, weights: str) -> None:
    if source.classes is None or source.classes == classes:
        return
    extra = source.classes == classes + 1
    why = ", perhaps because one of them is a background class or no class at all" if extra else ""
    raise TokredError(
        f"{source.name} has {source.classes} classes, but the weights ({weights}) have {classes}{why}; "
        "choose weights for this data with --weights, map the classes with --class-map, or use --no-labels."
    )


def _check_range(source: Source, classes: int, weights: str) -> None:
    if source.labels is None or not len(source.labels):
        return
    low, high = int(source.labels.min()), int(source.labels.max())
    if low >= 0 and high < classes:
        return
    why = f"one is {high if high >= classes else low}"
    if (low, high) == (1, classes):
        why = "they seem to count from 1"
    raise TokredError(
        f"The labels of {source.name} are not classes of the weights ({weights}), which are 0 to "
        f"{classes - 1}: {why}; map the classes with --class-map, or use --no-labels."
    )


def _align_wnids(source: Source, classes: int, weights: str) -> Source:
    """Map class folders that are WordNet IDs to the order of timm's weights with that many classes."""
    names, known = source.class_names or (), imagenet.class_names(classes)
    others = sorted(set(names) - set(known))
    if not known or (others and len(names) == classes):
        if len(names) != classes:
            _check_count(source, classes, weights)
        return source.noted(
            f"The {classes} classes of the weights are assumed to be the {classes} class folders in sorted "
            "order."
        )
    if others:
        raise TokredError(
            f"{source.name} has class folders that are not among the {classes:,} classes of the weights "
            f"({weights}): {some(others)}; remove them, or choose weights for this data with --weights."
        )
    if names == known:
        return source
    index = {name: i for i, name in enumerate(known)}
    mapping = np.array([index[name] for name in names])
    missing = [name for name in known if name not in set(names)]
    which = f" (missing: {some(missing)})" if len(missing) <= len(known) // 10 else ""
    note = (
        f"These are {len(names)} of ImageNet's {len(known):,} classes{which}: "
        f"labels are theirs among the {len(known):,}, and the model still chooses among all of them."
    )
    return replace(source.relabel(mapping, classes, note if missing else ""), class_names=known)


def _noted_imagenet(source: Source) -> Source:
    """Note files that are not ImageNet's validation set, or not all of it."""
    assert source.labels is not None
    counts = np.bincount(source.labels, minlength=len(source.class_names or ()))
    names = source.class_names or ()
    if source.origin == "training":
        if (counts > 0).sum() == 1000 and source.split not in ("train", "training"):
            raise TokredError(
                f"{source.name} contains ImageNet's training images, by their file names; give the "
                "validation images or, to use the training images, the parent folder with --split train."
            )
        return source.noted(
            "These are ImageNet's training images, by their file names; the weights were probably trained on "
            "them."
        )
    unusual = [
        f"{names[i]} ({counts[i]})" for i in np.flatnonzero((counts > 0) & (counts != imagenet.PER_CLASS))
    ]
    if source.origin == "validation" and unusual:
        present = int((counts > 0).sum())
        here = f"other numbers in {len(unusual)} of {present}"
        if len(unusual) == present:
            here = f"{len(source):,} images for {present:,}"
        return source.noted(
            f"ImageNet's validation set has {imagenet.PER_CLASS} images of each class; this data has {here}: "
            f"{some(unusual, 3)}."
        )
    if len(names) == 1000 and unusual:
        return source.noted(
            f"These are {len(source):,} images, not ImageNet's {imagenet.VALIDATION_IMAGES:,} validation "
            "images; accuracies are not comparable with published ones."
        )
    return source


def _noted_order(source: Source, classes: int, own: bool) -> Source:
    """Note an order of the class folders that may not be that of the weights."""
    names = source.class_names or ()
    if classes == 1000 and all(name.isdecimal() for name in names):
        return source.noted(
            f"Class folders are numbers, not WordNet IDs: {names[0]} to {names[-1]} are assumed to be "
            "ImageNet's classes in the order of the sorted WordNet IDs, which is not the order of the devkit."
        )
    if classes == 1000 and not own:
        raise TokredError(
            f"The class folders of {source.name} are not WordNet IDs (such as n01440764) but "
            f"{some(names, 3)}, so their order is not that of ImageNet's classes; map the classes with "
            "--class-map."
        )
    if list(names) != sorted(names):
        first, second = _out_of_order(names)
        return source.noted(
            f"Classes are numbered in natural order, as timm does, so {first} comes before {second}; if the "
            "weights were trained with torchvision's order, use --class-map."
        )
    return source


def _out_of_order(names: Sequence[str]) -> tuple[str, str]:
    ordered = sorted(names, key=natural_key)
    return next((a, b) for a, b in pairwise(ordered) if a > b)


def facts(source: Source) -> dict[str, str]:
    """Facts about images, known before any is read, for people."""
    facts = {"Images": f"{len(source):,}", "Split": source.split}
    if not source.labelled:
        return facts | {"Labels": "none"}
    counts = np.empty(0) if source.labels is None else np.bincount(source.labels)
    present = np.flatnonzero(counts)
    if not len(present):
        return facts | ({"Classes": f"{source.classes:,}"} if source.classes else {})
    fewest, most = counts[present].min(), counts[present].max()
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    facts["Classes"] = (
        f"{len(present):,}{f' of {source.classes:,}' if source.classes else ''}, images of each: {each}"
    )
    for place, label in {"First label": present[0], "Last label": present[-1]}.items():
        facts[place] = f"{label}, {source.class_names[label]}" if source.class_names else f"{label}"
    return facts


def at_chance(right: int, images: int, classes: int) -> str:
    """A sentence where a model is right no more often than by chance; else "".

    Args:
        right: number of images that the dense model classifies correctly.
        images: number of images.
        classes: number of classes.
    """
    few = images < CHANCE_IMAGES or classes < CHANCE_CLASSES
    if few or stats.binom.sf(right - 1, images, 1 / classes) < _CHANCE:
        return ""
    return (
        f"The dense model is right on {right} of {images} images, which is chance with {classes:,} classes: "
        "the labels probably do not belong to the weights."
    )
