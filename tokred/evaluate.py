"""One pass over the data for all methods: images are decoded once, and the dense states are shared.

The dense model runs once on each batch and leaves its state at every site where some plan begins; each plan continues from there.
Results equal those of running each model alone on the same batches. Batches run side by side, one to a processor core, which
uses the cores better than splitting every operator over them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokred.errors import TokredError
from tokred.metrics import Outcomes, finite
from tokred.vit import Point, ReducedViT, State

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MAX_LANES = 8  # batches that run side by side, and so are in memory at once

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Evaluation:
    """Per-image outcomes of one pass.

    Attributes:
        labels: [n].
        dense: of the unreduced model.
        methods: of every method that ended well.
        failed: one sentence for every other.
    """

    labels: np.ndarray
    dense: Outcomes
    methods: dict[str, Outcomes]
    failed: dict[str, str] = field(default_factory=dict)


def resolve_device(name: str = "auto") -> torch.device:
    """The device to run on; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        TokredError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # each backend fails in its own way
        raise TokredError(f"The device {name!r} cannot be used here; try auto, cpu, or cuda where a GPU is.") from error
    if device.type == "meta":
        raise TokredError("The device 'meta' computes nothing; try auto, cpu, or cuda where a GPU is.")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; "auto" is bfloat16 where the processor has it natively, else float32."""
    if name != "auto":
        if name not in _DTYPES:
            raise TokredError(f"Unknown precision {name!r}; choose auto, {', '.join(_DTYPES)}.")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    return torch.bfloat16 if native else torch.float32


def evaluate(
    dense: ReducedViT,
    methods: Mapping[str, ReducedViT],
    batches: Iterable[Batch],
    n: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Run the dense model and all methods over the data.

    Args:
        dense: the empty plan, recording attention where `methods` need it (`dense_model` makes it).
        methods: reduced models, on the same backbone but for those that were fitted in full.
        batches: (images [B, 3, H, W], labels [B], indices [B]).
        n: number of images.
        device: where to run; the models are moved there.
        dtype: of matrix products, by autocast unless float32.
        progress: called with the number of images of each finished batch.

    Raises:
        TokredError: the dense model itself gives logits that are no numbers.
    """
    device = device or torch.device("cpu")
    result = Evaluation(np.full(n, -1), Outcomes.empty(n), {name: Outcomes.empty(n) for name in methods})
    for model in (dense, *methods.values()):
        model.to(device).eval()

    def work(batch: Batch) -> int:
        _run_batch(dense.twin(), {name: model.twin() for name, model in methods.items()}, batch, result, device, dtype)
        return len(batch[0])

    with _lanes(device) as (lanes, threads):
        for images in _side_by_side(work, batches, lanes, threads):
            progress(images)
    for name in result.failed:
        result.methods.pop(name, None)
    return result


def dense_model(backbone: Any, methods: Iterable[ReducedViT]) -> ReducedViT:
    """The unreduced model that leaves behind what the first stage of every method looks at."""
    record = set().union(*(model.recorded_before_first for model in methods if model.backbone is backbone))
    return ReducedViT(backbone, record=record)


@torch.inference_mode()
def _run_batch(
    dense: ReducedViT, methods: dict[str, ReducedViT], batch: Batch, result: Evaluation, device: torch.device, dtype: torch.dtype
) -> None:
    images, labels, index = (tensor.to(device, non_blocking=True) for tensor in batch)
    rows = batch[2].numpy()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        states = _dense_states(dense, images, index, {model.first_point for model in methods.values() if model.backbone is dense.backbone})
        dense_logits = dense.head(states[None])
        if not finite(dense_logits):
            raise TokredError(f"The unreduced model gives logits that are no numbers on images {rows[0]} to {rows[-1]}; check its weights.")
        result.labels[rows] = batch[1].numpy()
        result.dense.put(rows, dense_logits, labels, dense_logits)
        for name, model in methods.items():
            if name in result.failed:
                continue
            try:
                shared = model.backbone is dense.backbone  # one that was fitted in full has nothing in common with the dense model
                start = states[model.first_point].copy() if shared else model.embed(images, index)  # what a method writes on is its own
                logits = model.head(model.advance(start))
                if not finite(logits):
                    raise TokredError(f"{name} gives logits that are no numbers on images {rows[0]} to {rows[-1]}.")
                result.methods[name].put(rows, logits, labels, dense_logits)
            except Exception as error:  # a method that fails must not take the others along
                result.failed[name] = f"{error}".strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _dense_states(dense: ReducedViT, images: Tensor, index: Tensor, points: set[Point | None]) -> dict[Point | None, State]:
    """The dense model's state at each point, and at the end (None)."""
    state = dense.embed(images, index)
    states: dict[Point | None, State] = {}
    for point in sorted((p for p in points if p is not None), key=lambda p: (p[0], p[1] == "mid")):
        state = states[point] = dense.advance(state, stop=point)
    states[None] = dense.advance(state)
    return states


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


def _side_by_side(work: Callable[[Batch], int], batches: Iterable[Batch], lanes: int, threads: int) -> Iterator[int]:
    """Results of `work` in order, at most `lanes` batches in memory and one more being loaded."""
    if lanes == 1:
        yield from map(work, batches)
        return
    running: deque[Future[int]] = deque()
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for batch in batches:
                if len(running) == lanes:
                    yield running.popleft().result()
                running.append(pool.submit(work, batch))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
