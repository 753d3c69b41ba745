"""Running batches in parallel threads on a CPU, and in smaller parts if memory is short."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch

from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.utils.devices import is_out_of_memory

_MAX_LANES = 8  # batches that run in parallel, and so are in memory at once
_GLANCE = 1.0  # seconds between calls of `meanwhile`

Work = Callable[[Batch], np.ndarray]


class Lanes:
    """Threads that work on batches in parallel.

    On a CPU there is one for each core, up to eight, which uses the cores better than splitting every
    operator over them; elsewhere there is one.

    Args:
        device: device on which the batches run.

    Attributes:
        idle: fraction of the threads' time spent waiting for images.
    """

    def __init__(self, device: torch.device) -> None:
        threads = torch.get_num_threads()
        self.count = min(threads, _MAX_LANES) if device.type == "cpu" else 1
        self.threads = threads // self.count  # of each lane, within operators
        self.idle = 0.0

    def run(
        self,
        work: Work,
        batches: Iterable[Batch],
        finished: Callable[[np.ndarray], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Work on all batches, at most one in each lane.

        Args:
            work: function called with each batch in a thread.
            batches: batches, loaded in the calling thread.
            finished: function called with the results in the order of the batches.
            meanwhile: function called about once a second while a result is awaited.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        clock, running = Clock(self.count), deque[Future[np.ndarray]]()
        ends = dict[Future[np.ndarray], float]()
        loader = iter(batches)
        settings = (torch.set_num_threads, (self.threads,))
        try:
            with ThreadPoolExecutor(self.count, "lane", *settings) as pool:
                try:
                    while True:
                        since = time.monotonic()
                        batch = next(loader, None)
                        unused = [since] * (self.count - len(running))
                        done = [ends.get(future, time.monotonic()) for future in running if future.done()]
                        clock.waited(since, unused + done)
                        if batch is None:
                            break
                        if len(running) == self.count:
                            first = running.popleft()
                            finished(_awaited(first, meanwhile))
                            ends.pop(first, None)
                        future = pool.submit(work, batch)
                        future.add_done_callback(lambda done: ends.setdefault(done, time.monotonic()))
                        running.append(future)
                    while running:
                        finished(_awaited(running.popleft(), meanwhile))
                finally:
                    for future in running:
                        future.cancel()
        finally:
            torch.set_num_threads(before)
            self.idle = clock.share


def _awaited(result: Future[np.ndarray], meanwhile: Callable[[], None]) -> np.ndarray:
    while not wait((result,), _GLANCE).done:
        meanwhile()
    return result.result()


class Clock:
    """Measures how long lanes are idle because the next batch is not loaded yet."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.start = lanes, time.monotonic()
        self.idle = 0.0  # seconds, summed over lanes

    def waited(self, since: float, ends: list[float]) -> None:
        """Add the wait for a batch since a time, for lanes that became idle at the times `ends`."""
        now = time.monotonic()
        self.idle += sum(now - max(since, end) for end in ends)

    @property
    def share(self) -> float:
        """Idle fraction of the lanes' time."""
        return self.idle / max(1e-9, self.lanes * (time.monotonic() - self.start))


class Portions:
    """Runs batches in as many parts as memory requires.

    Args:
        device: device on which the batches run.
        shrink: function called with the number of images that fit into memory, whenever it becomes smaller.

    Attributes:
        limit: number of images that fit into memory; None while all batches have fitted.
    """

    def __init__(self, device: torch.device, shrink: Callable[[int], None]) -> None:
        self.device, self.shrink = device, shrink
        self.limit: int | None = None

    def run(self, work: Callable[[Batch], None], batch: Batch) -> None:
        """Work on all parts of a batch.

        Raises:
            TokredError: not even one image fits into memory.
        """
        start, total = 0, len(batch.indices)
        while start < total:
            size = min(total - start, self.limit or total)
            part = slice(start, start + size)
            try:
                work(Batch(batch.images[part], batch.labels[part], batch.indices[part]))
                start += size
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise TokredError(
                        f"{self.device} has too little memory for even one image of the dense model; "
                        "try a smaller model or --precision bf16."
                    ) from None
                self.limit = min(self.limit or size, size // 2)
                self.shrink(self.limit)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
