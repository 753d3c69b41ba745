"""One pass over the data for all methods: images are decoded once, and the dense states are shared.

On each batch the dense model runs once. Where it comes to a site at which some plan begins, the methods of that plan go on from its state,
one after the other, so that memory does not grow with their number. Results equal those of running each model alone on the same
batches. Batches run side by side, one to a processor core, which uses the cores better than splitting every operator over them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.core.vit import Point, ReducedViT, State
from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.evaluation.predictions import Evaluation, Failure, finite

_MAX_LANES = 8  # batches that run side by side, and so are in memory at once


class Pass:
    """One pass over some batches.

    Args:
        dense: the empty plan, recording attention where `methods` need it (`dense_model` makes it).
        methods: reduced models, on the same backbone but for those that were fitted in full.
        evaluation: where the outcomes go.
        device: where to run; the models are moved there.
        dtype: of matrix products, by autocast unless float32.

    Attributes:
        waiting: share of the time in which a lane had nothing to do but wait for images.
    """

    def __init__(
        self,
        dense: ReducedViT,
        methods: Mapping[str, ReducedViT],
        evaluation: Evaluation,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dense, self.methods, self.evaluation, self.dtype = dense, methods, evaluation, dtype
        self.device = device or torch.device("cpu")
        self.waiting = 0.0
        self._together: int | None = None  # images that memory has room for
        for model in (dense, *methods.values()):
            model.to(self.device).eval()

    def run(
        self, batches: Iterable[Batch], finished: Callable[[np.ndarray], None] = lambda rows: None
    ) -> Evaluation:
        """Evaluate all batches. `finished` hears of the indices of each, in order.

        Raises:
            TokredError: the dense model itself gives logits that are no numbers, or does not fit into memory.
        """
        with _lanes(self.device) as (lanes, threads):
            clock = _Clock(lanes)
            try:
                with closing(_side_by_side(self._work, batches, threads, clock)) as results:
                    for rows in results:
                        finished(rows)
            finally:
                self.waiting = clock.share
        return self.evaluation

    def _work(self, batch: Batch) -> np.ndarray:
        """Evaluate one batch in as many parts as memory asks for."""
        rows = batch.indices.numpy()
        dense, methods = self.dense.twin(), {name: model.twin() for name, model in self.methods.items()}
        start = 0
        while start < len(rows):
            size = min(len(rows) - start, self._together or len(rows))
            try:
                self._run(dense, methods, _part(batch, slice(start, start + size)))
                start += size
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise TokredError(
                        f"{self.device} has no memory even for one image of the unreduced model."
                    ) from None
                self._together = min(self._together or size, size // 2)
                self.evaluation.shrink(self._together)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        self.evaluation.remark(batch.unreadable, batch.kinds)
        self.evaluation.done[rows] = True
        return rows

    @torch.inference_mode()
    def _run(self, dense: ReducedViT, methods: dict[str, ReducedViT], batch: Batch) -> None:
        images, labels, index = (tensor.to(self.device, non_blocking=True) for tensor in batch[:3])
        rows = batch.indices.numpy()
        logits: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            state = dense.embed(images, index)
            for point, names in _starts(dense, methods).items():
                state = dense.advance(state, stop=point) if point else state
                for name in names:
                    shared = state if methods[name].backbone is dense.backbone else None
                    found = self._logits(name, methods[name], shared, images, index, int(rows[0]))
                    if found is not None:
                        logits[name] = found
            dense_logits = dense.head(dense.advance(state))
            if not finite(dense_logits):
                place = _where_not_finite(dense, images, index)
                raise TokredError(
                    f"The unreduced model gives numbers that are not finite, first in {place}, {_span(rows)}; check its weights."
                )
        self.evaluation.labels[rows] = batch.labels.numpy()
        self.evaluation.dense.put(rows, dense_logits, labels, dense_logits)
        for name, found in logits.items():
            self.evaluation.methods[name].put(rows, found, labels, dense_logits)

    def _logits(
        self, name: str, model: ReducedViT, shared: State | None, images: Tensor, index: Tensor, first: int
    ) -> Tensor | None:
        """A method's logits on a batch; None if it fails there or has failed before. It must not take the others along."""
        failed = self.evaluation.failed.get(name)
        if failed is not None and failed.image < first:
            return None
        try:
            # What a method writes on is its own. One that was fitted in full has nothing in common with the dense model.
            start = shared.copy() if shared is not None else model.embed(images, index)
            logits = model.head(model.advance(start))
            if finite(logits):
                return logits
            reason = f"{name} gives numbers that are not finite, first in {_where_not_finite(model, images, index)}, {_span(index)}."
        except (Exception, SystemExit) as error:  # the method's code may do anything
            if _is_out_of_memory(error) and len(images) > 1:
                raise
            reason = f"{error}".strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if _is_out_of_memory(error):
                self._together = (
                    None  # it was this method that needed so much; the others may have room for more again
                )
        self.evaluation.fail(name, Failure(first, reason))
        return None


def evaluate(
    dense: ReducedViT, methods: Mapping[str, ReducedViT], batches: Iterable[Batch], n: int, **settings: Any
) -> Evaluation:
    """Run the dense model and all methods over n images; `settings` as for `Pass`.

    Raises:
        TokredError: see `Pass.run`.
    """
    return Pass(dense, methods, Evaluation.empty(n, methods), **settings).run(batches)


def dense_model(backbone: Any, methods: Iterable[ReducedViT]) -> ReducedViT:
    """The unreduced model that leaves behind what the first stage of every method looks at."""
    record = set().union(*(model.recorded_before_first for model in methods if model.backbone is backbone))
    return ReducedViT(backbone, record=record)


def _starts(dense: ReducedViT, methods: Mapping[str, ReducedViT]) -> dict[Point | None, list[str]]:
    """Where methods leave the dense model, in the order in which it comes there; None for those that have nothing in common with it."""
    starts: dict[Point | None, list[str]] = {}
    for name, model in methods.items():
        starts.setdefault(model.first_point if model.backbone is dense.backbone else None, []).append(name)
    return dict(
        sorted(
            starts.items(),
            key=lambda item: (0, False) if item[0] is None else (item[0][0], item[0][1] == "mid"),
        )
    )


def _where_not_finite(model: ReducedViT, images: Tensor, index: Tensor) -> str:
    """The first part of a model whose output is not finite."""
    state = model.embed(images, index)
    if not finite(state.x):
        return "the patch embedding"
    for part, after in model.walk(state):
        if not finite(after.x):
            return part
    return "the classifier"


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.images[rows], batch.labels[rows], batch.indices[rows])


def _span(indices: Any) -> str:
    return f"on images {int(indices[0])} to {int(indices[-1])}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was what lacked, on a GPU or on the CPU, whose allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "not enough memory"))
    )


@contextmanager
def _lanes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield how many batches to run at once, and on how many threads each. On a CPU that is one to a core, up to `_MAX_LANES`."""
    threads = torch.get_num_threads()
    lanes = min(threads, _MAX_LANES) if device.type == "cpu" else 1
    torch.set_num_threads(threads // lanes)
    try:
        yield lanes, threads // lanes
    finally:
        torch.set_num_threads(threads)


class _Clock:
    """How long lanes were idle while the next images were not there yet."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.start = lanes, time.monotonic()
        self.idle = 0.0  # seconds of one lane

    def waited(self, since: float, ended: list[float]) -> None:
        """Since then the next images were waited for. Of the batches in work some have `ended`, perhaps meanwhile."""
        now = time.monotonic()
        self.idle += sum(now - max(since, end) for end in ended)

    @property
    def share(self) -> float:
        """Of the lanes' time."""
        return self.idle / max(1e-9, self.lanes * (time.monotonic() - self.start))


def _side_by_side(
    work: Callable[[Batch], np.ndarray], batches: Iterable[Batch], threads: int, clock: _Clock
) -> Generator[np.ndarray, None, None]:
    """Results of `work` in order. At most one batch for each lane is in work, and one more waits beside what the loader has."""
    running: deque[Future[np.ndarray]] = deque()
    ended: dict[Future[np.ndarray], float] = {}
    source = iter(batches)
    with ThreadPoolExecutor(clock.lanes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            while True:
                since = time.monotonic()
                batch = next(source, None)
                empty = [since] * (clock.lanes - len(running))
                clock.waited(
                    since,
                    empty + [ended.get(future, time.monotonic()) for future in running if future.done()],
                )
                if batch is None:
                    break
                if len(running) == clock.lanes:
                    first = running.popleft()
                    yield first.result()
                    ended.pop(first, None)
                future = pool.submit(work, batch)
                future.add_done_callback(lambda done: ended.setdefault(done, time.monotonic()))
                running.append(future)
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
