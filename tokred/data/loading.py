"""Batches of prepared images, whose boundaries are fixed by index, whatever the number of processes that load them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.errors import TokredError, UnreadableImage

OnError = Literal["fail", "skip", "count-wrong"]


class Batch(NamedTuple):
    """Some images of a source.

    Attributes:
        images: [B, 3, H, W].
        labels: [B] int64.
        indices: [B] int64, of the images in their source.
        unreadable: images, by index, that could not be read and are black here, with the reason.
        kinds: images, by index, whose file is not plain 8-bit colour, with what it is.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: dict[int, str] = {}  # noqa: RUF012, never written to
    kinds: dict[int, str] = {}  # noqa: RUF012


def batches(
    source: Source,
    preparation: Preparation,
    batches: Sequence[range],
    workers: int,
    on_error: OnError = "fail",
    pin: bool = False,
) -> Iterator[Batch]:
    """The images of each range of indices, one batch a range, whatever the number of workers.

    Args:
        source: of the images.
        preparation: of each of them.
        batches: indices of each batch.
        workers: processes that load images; none for 0.
        on_error: "fail" raises at an image that cannot be read; else it is black and named in its batch.
        pin: put the images where a GPU fetches them fastest.

    Raises:
        TokredError: an image cannot be read.
    """
    data = Indexed(source.images, preparation.transform)
    collated = collate if on_error == "fail" else Collate(preparation.transform(Image.new("RGB", (256, 256))))
    loader = DataLoader(
        data,
        batch_sampler=_Ranges(batches),
        num_workers=workers,
        collate_fn=collated,
        pin_memory=pin,
        worker_init_fn=_hush,
    )
    for batch in loader:
        if isinstance(batch, TokredError):
            raise batch
        yield batch


def default_workers(on_gpu: bool) -> int:
    """Processes that load images: a CPU that computes has little to spare, a GPU wants as many as there are cores, up to eight."""
    return min(8, os.cpu_count() or 1) if on_gpu else 1


def ranges(n: int, batch_size: int) -> list[range]:
    """The batches of n images: their boundaries are fixed, in one process or many, and in a run that goes on after a kill."""
    return [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]


def _hush(worker: int) -> None:
    """What goes wrong with an image comes back in its batch; what else a worker prints is that an interrupted run no longer listens."""
    sys.excepthook = lambda kind, error, trace: None


class _Ranges(Sampler[list[int]]):
    """Indices of each batch, listed one batch at a time: a large data set has a great many."""

    def __init__(self, batches: Sequence[range]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.batches)


class Indexed(Dataset[Any]):
    """Prepared images with their labels, indices and kinds of file.

    An error is returned: raised in a worker process, it would carry that process's traceback.
    """

    def __init__(self, images: Any, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, str] | tuple[TokredError, int]:
        try:
            image, label = self.images[index]
        except TokredError as error:
            return error, index
        return self.transform(image), label, index, image.info.get("kind", "")


def collate(items: list[Any]) -> Batch | TokredError:
    """A batch, or the first error in it."""
    error = next((item[0] for item in items if isinstance(item[0], TokredError)), None)
    if error is not None:
        return error
    images, labels, indices, kinds = zip(*items, strict=True)
    named = {index: kind for index, kind in zip(indices, kinds, strict=True) if kind}
    tensors = default_collate(list(zip(images, labels, indices, strict=True)))
    return Batch(tensors[0], tensors[1], tensors[2], kinds=named)


class Collate:
    """A batch in which unreadable images are black and named, so that its boundaries stay where they are."""

    def __init__(self, black: Tensor) -> None:
        self.black = black

    def __call__(self, items: list[Any]) -> Batch | TokredError:
        errors = {item[1]: item[0] for item in items if isinstance(item[0], UnreadableImage)}
        whole = [
            (self.black, item[0].label, item[1], "") if isinstance(item[0], UnreadableImage) else item
            for item in items
        ]
        batch = collate(whole)
        if isinstance(batch, TokredError):
            return batch
        return batch._replace(unreadable={index: str(error) for index, error in errors.items()})
