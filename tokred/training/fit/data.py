"""Images of a fit: training images in an order that depends on the step, and fixed validation images."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from tokred.data import folders, imagenet, loading, photodigits, preflight, preprocessing, sources
from tokred.data.source import Source
from tokred.errors import TokredError
from tokred.training.fit.recipe import FitRecipe

VALIDATION = 500  # most validation images
_ENDLESS = 2**31


@dataclass(frozen=True)
class FitImages:
    """Training and validation images.

    Attributes:
        train: training images; an item is a PIL image and its label.
        n: number of training images; None if they are endless.
        validation: a fixed choice of validation images, evenly spaced.
        name: name of the data.
        hash: hash of the training images.
        labelled: whether the labels are used.
        note: a note for the user on the images; empty if there is none.
    """

    train: Dataset[tuple[Any, int]]
    n: int | None
    validation: Source
    name: str
    hash: str
    labelled: bool
    note: str = ""


def open_images(data: str | None, seed: int, classes: int, labels: bool = True) -> FitImages:
    """Open the images to fit on.

    Args:
        data: folder or data set, as for `compare`; None for PhotoDigits.
        seed: seed of PhotoDigits' endless training images.
        classes: number of classes of the model.
        labels: whether to use the labels.

    Raises:
        TokredError: there are no such images, or their labels are not classes of the model.
    """
    if data is None or sources.is_photodigits(data):
        train = photodigits.PhotoDigits("train", length=_ENDLESS, seed=seed)
        probe = photodigits.PhotoDigits("train", length=photodigits.PROBE_IMAGES, seed=seed)
        return FitImages(
            train=train,
            n=None,
            validation=_spread(sources.open_source(None, "validation")),
            name=sources.PHOTODIGITS,
            hash=probe.pixel_hash(),
            labelled=labels and _same_classes(photodigits.NUM_CLASSES, classes),
        )
    source, validation, note = _splits(data)
    # A single class folder does not label images.
    labels = labels and source.labelled and validation.labelled and source.classes != 1
    if labels:
        wnids = source.class_names or ()
        if not (wnids and all(map(imagenet.is_wnid, wnids))):  # these may be a part of ImageNet's classes
            _same_classes(source.classes, classes)
        source, validation = preflight.align(source, classes), preflight.align(validation, classes)
        note = f"{note} {source.note}".strip()
    return FitImages(
        train=source.images,
        n=len(source),
        validation=_spread(validation),
        name=source.name,
        hash=source.images_hash,
        labelled=labels,
        note=note,
    )


def _same_classes(in_data: int | None, classes: int) -> bool:
    """True; raises if the number of classes in the data, unless None, is not that of the model."""
    if in_data not in (None, classes):
        raise TokredError(
            f"The data has {in_data} classes, but the model has {classes}; fit without labels: --no-labels."
        )
    return True


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise a `TokredError` if a label, of [B], is not a class of the model."""
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        wrong = int(labels.max()) if int(labels.max()) >= classes else int(labels.min())
        raise TokredError(
            f"The data has the label {wrong}, but the classes of the model are 0 to {classes - 1}; fit with "
            "--no-labels."
        )


def _splits(data: str) -> tuple[Source, Source, str]:
    """Training images, validation images, and a note if the folder has no validation split."""
    splits = folders.splits_in(folders.split_base(Path(data)))
    if not Path(data).is_dir() or folders.VALIDATION_NAMES & splits:
        train, validation = sources.open_source(data, "train"), sources.open_source(data, "validation")
        if train.class_names != validation.class_names:
            raise TokredError(
                f"The training and validation images in {data} have different class folders; "
                "both need the same ones."
            )
        return train, validation, ""
    if splits and not splits & folders.TRAINING_NAMES:
        raise TokredError(f"{data} has no training split; it has {', '.join(sorted(splits))}.")
    whole = sources.open_source(data, "train" if splits & folders.TRAINING_NAMES else None)
    if len(whole) < 2:
        raise TokredError(
            f"{data} contains {len(whole)} image; a fit needs at least one for training and one for "
            "validation."
        )
    places = np.arange(len(whole))
    is_validation = places % 10 == 9 if len(whole) >= 10 else places == places[-1]
    note = (
        "There is no validation split, so every tenth image is used for validation; compare on other images."
    )
    return whole.take(np.flatnonzero(~is_validation)), whole.take(np.flatnonzero(is_validation)), note


def _spread(source: Source) -> Source:
    """At most `VALIDATION` images, evenly spaced, because files are sorted by class."""
    count = min(len(source), VALIDATION)
    return source.take(np.linspace(0, len(source) - 1, count).round().astype(int))


class Shuffled(Dataset[Any]):
    """The training images in the order of a run.

    Item p is the p-th image of the run. Each epoch has its own permutation; augmentation depends on p alone.
    """

    def __init__(self, images: FitImages, transform: Any, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed
        self._epoch, self._order = -1, np.empty(0, dtype=int)

    def index(self, position: int) -> int:
        """The index of the image at a position."""
        if self.images.n is None:
            return position
        epoch, offset = divmod(position, self.images.n)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.RandomState([self.seed, epoch]).permutation(self.images.n)
        return int(self._order[offset])

    def __getitem__(self, position: int) -> loading.Item | loading.LoadError:
        try:
            image, label = self.images.train[self.index(position)]
        except TokredError as error:
            return loading.LoadError(position, error)
        with drawn_from(self.seed, position):
            return loading.Item(self.transform(image), label, position)


@contextmanager
def drawn_from(*key: int) -> Iterator[None]:
    """Seed all random generators by the key inside the `with` statement, and restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.RandomState(key).randint(2**31))
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    # A process that loads images has no GPU.
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    if on_gpu is not None:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def training_transform(model: Any, recipe: FitRecipe, as_drawn: bool) -> Any:
    """timm's training transform with the recipe's settings; PhotoDigits (`as_drawn`) is not augmented.

    Raises:
        TokredError: timm does not know the policy of augmentation.
    """
    changed = recipe.flip or recipe.color_jitter or recipe.auto_augment or recipe.erase
    if as_drawn or (not changed and recipe.crop_scale == 1):
        return preprocessing.prepare(model, 1.0 if as_drawn else None).transform
    config = preprocessing.data_config(model)
    try:
        return create_transform(
            config["input_size"],
            is_training=True,
            **{name: config[name] for name in ("mean", "std", "interpolation")},
            hflip=recipe.flip,
            scale=(recipe.crop_scale, 1.0),
            color_jitter=recipe.color_jitter or None,
            auto_augment=recipe.auto_augment,
            re_prob=recipe.erase,
            re_mode="pixel",
        )
    except (AssertionError, ValueError) as error:  # as timm refuses the name of a policy
        raise TokredError(
            "auto_augment of the recipe must be a policy of timm, such as rand-m9-mstd0.5-inc1; got "
            f"{recipe.auto_augment!r}."
        ) from error


def training_batches(
    data: Shuffled, steps: range, batch_size: int, rank: int, world: int, workers: int
) -> Iterator[loading.Batch]:
    """Yield this process's share of the batch of each step; see `loading.stream`."""
    starts = (step * batch_size for step in steps)
    shares = (list(range(start + rank, start + batch_size, world)) for start in starts)
    return loading.stream(data, shares, workers)
