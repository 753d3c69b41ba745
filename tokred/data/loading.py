"""Batches of prepared images; their boundaries do not depend on the number of processes that load them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.errors import TokredError, UnreadableImage

OnError = Literal["fail", "skip", "count-wrong"]


@dataclass(frozen=True)
class Item:
    """One prepared image [3, H, W]; `kind` says what its file is, if not plain 8-bit colour."""

    image: Tensor
    label: int
    index: int
    kind: str = ""


@dataclass(frozen=True)
class LoadError:
    """What takes the place of an image, or of its batch, that cannot be loaded.

    It is a value because an error that a worker process raises carries that process's traceback.
    """

    index: int
    error: TokredError


class Batch(NamedTuple):
    """Some images of a source.

    Attributes:
        images: [B, 3, H, W].
        labels: [B] int64.
        indices: [B] int64, the images' places in their source.
        unreadable: by index, why an image could not be read; it is black here.
        kinds: by index, what an image's file is, if not plain 8-bit colour.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: dict[int, str] = {}  # noqa: RUF012, never written to
    kinds: dict[int, str] = {}  # noqa: RUF012


def batches(
    source: Source,
    preparation: Preparation,
    batches: Sequence[Sequence[int]],
    workers: int | None = None,
    on_error: OnError = "fail",
    on_gpu: bool = False,
) -> Iterator[Batch]:
    """Load images of a source, in the given batches.

    Args:
        source: images to load.
        preparation: transform of each image.
        batches: indices of the images of each batch.
        workers: number of processes that load images, 0 for this one; by default 1 on a CPU and 8 on a GPU,
            or one for each core if there are fewer.
        on_error: "fail" raises at an image that cannot be read; else it is black and named in its batch.
        on_gpu: whether a GPU uses the batches, for which they are in page-locked memory.

    Raises:
        TokredError: an image cannot be read.
    """
    black = None if on_error == "fail" else preparation.transform(Image.new("RGB", (256, 256)))
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if on_gpu else 1
    return stream(Indexed(source.images, preparation.transform), map(list, batches), workers, black, on_gpu)


def stream(
    data: Dataset[Any],
    batches: Iterable[list[int]],
    workers: int,
    black: Tensor | None = None,
    pin: bool = False,
) -> Iterator[Batch]:
    """Load batches of a data set whose elements are `Item` or `LoadError`.

    Args:
        data: data set.
        batches: indices of the elements of each batch; read one batch at a time, since there may be many.
        workers: number of processes that load images.
        black: image [3, H, W] that takes the place of an unreadable one; None raises instead.
        pin: whether to use page-locked memory.

    Raises:
        TokredError: an image cannot be read.
    """
    loader = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Collate(black),
        pin_memory=pin,
        worker_init_fn=_silence,
    )
    for batch in loader:
        if isinstance(batch, LoadError):
            raise batch.error
        yield batch


def ranges(n: int, batch_size: int) -> list[range]:
    """Indices of the batches of n images; they are the same in one process or many, and in a resumed run."""
    return [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]


def _silence(worker: int) -> None:
    """Print no tracebacks in a worker: image errors come back as values, the rest is noise after Ctrl-C."""
    sys.excepthook = lambda kind, error, trace: None


class Indexed(Dataset[Any]):
    """Prepared images with their labels, indices and kinds of file; index to `Item` or `LoadError`."""

    def __init__(self, images: Any, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item | LoadError:
        try:
            image, label = self.images[index]
        except TokredError as error:
            return LoadError(index, error)
        return Item(self.transform(image), label, index, image.info.get("kind", ""))


class _Collate:
    """Make a batch of items.

    An unreadable image becomes `black`, so that the batch keeps its boundaries; without that its error is the
    batch.
    """

    def __init__(self, black: Tensor | None) -> None:
        self.black = black

    def __call__(self, elements: list[Item | LoadError]) -> Batch | LoadError:
        items, unreadable = list[Item](), dict[int, str]()
        for element in elements:
            if isinstance(element, Item):
                items.append(element)
            elif self.black is not None and isinstance(element.error, UnreadableImage):
                unreadable[element.index] = str(element.error)
                items.append(Item(self.black, element.error.label, element.index))
            else:
                return element
        images, labels, indices = default_collate([(item.image, item.label, item.index) for item in items])
        return Batch(
            images, labels, indices, unreadable, {item.index: item.kind for item in items if item.kind}
        )
