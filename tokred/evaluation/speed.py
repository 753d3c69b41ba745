"""Speed of reduced models, as ratios to the dense one.

The theoretical speed-up of a model that saves the fraction r of its FLOPs is 1 / (1 - r). The measured one is
the ratio to the plain timm model, with its fused attention, in the same run: all models take turns, round by
round, and every value is a median over rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation.timing import (
    WARM_UP,
    Run,
    interleave,
    median_interval,
    peak_bytes,
    sentence,
    weight_bytes,
)
from tokred.tables.row import BASELINE
from tokred.utils.devices import autocast


@dataclass(frozen=True)
class Speed:
    """Speed and memory of one model at one batch size.

    Attributes:
        images_per_s: images per second, by the median latency.
        latency_ms: median duration of a forward pass of the whole batch, in milliseconds.
        latency_q1_ms: lower quartile over the rounds.
        latency_q3_ms: upper quartile over the rounds.
        speedup: median over the rounds of the ratio of the dense model's time to this model's.
        speedup_lo: lower end of its 95 % interval.
        speedup_hi: upper end of its 95 % interval.
        promise: theoretical speed-up, 1 / (1 - reduction).
        promise_share: efficiency, the measured speed-up over the theoretical one.
        peak_mem_mb: weights, and the most tensors alive at once in a pass, in 10^6 bytes; None if not
            measured.
    """

    images_per_s: float
    latency_ms: float
    latency_q1_ms: float
    latency_q3_ms: float
    speedup: float
    speedup_lo: float
    speedup_hi: float
    promise: float
    promise_share: float
    peak_mem_mb: float | None


@torch.inference_mode()
def measure(
    models: Mapping[str, ReducedViT],
    dense: Any,
    batch_size: int,
    reductions: Mapping[str, float],
    *,
    rounds: int = 15,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    failed: dict[str, str] | None = None,
    progress: Callable[[int], None] = lambda rounds: None,
) -> dict[str, Speed]:
    """Time reduced models against the dense one, in turns.

    Args:
        models: reduced models by name.
        dense: the plain backbone.
        batch_size: number of images in a forward pass; they are random, of the backbone's size.
        reductions: fractions of FLOPs saved, by name.
        rounds: number of times each model is timed.
        device: device to run on; the models are moved there.
        dtype: dtype of matrix products; autocast is used unless it is float32, as in a comparison.
        compiled: whether to run all models, including the dense one, through `torch.compile`.
        failed: dictionary that receives a sentence for each model that fails; without it a failure is raised.
        progress: function called with 1 after every round.

    Returns:
        Speeds by name, that of the dense model under "baseline".
    """
    device = device or torch.device("cpu")
    everything: dict[str, nn.Module] = {BASELINE: dense, **models}
    for model in everything.values():
        model.to(device).eval()
    shape = (batch_size, 3, *dense.patch_embed.img_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    runs, peaks = {}, {}
    # All reduced models share one `forward`, and so its count of compilations.
    limit = torch._dynamo.config.patch(recompile_limit=2 * len(everything) + 8)
    with limit, autocast(device, dtype):
        for name, model in everything.items():
            try:
                runs[name], peaks[name] = _prepared(model, images, device, compiled)
            except (Exception, SystemExit) as error:  # a failed method must not stop the others
                if failed is None or name == BASELINE:
                    raise
                failed[name] = sentence(error)
        seconds = interleave(runs, rounds, device, progress=progress, failed=failed)
    if BASELINE not in seconds:
        raise TokredError(f"The dense model cannot be timed: {(failed or {}).get(BASELINE)}")
    saved = {BASELINE: 0.0, **reductions}
    return {
        name: _speed(own, seconds[BASELINE], batch_size, saved[name], peaks[name])
        for name, own in seconds.items()
    }


def _prepared(
    model: nn.Module, images: torch.Tensor, device: torch.device, compiled: bool
) -> tuple[Run, float | None]:
    """A model ready to be timed, and its peak memory in 10^6 bytes."""
    call: Any = torch.compile(model, dynamic=False) if compiled else model
    for _ in range(WARM_UP):
        call(images)
    peak = peak_bytes(lambda: call(images), device)
    return lambda: call(images), None if peak is None else (peak + weight_bytes(model)) / 1e6


def _speed(
    seconds: np.ndarray, dense: np.ndarray, batch_size: int, saved: float, peak: float | None
) -> Speed:
    q1, middle, q3 = np.percentile(seconds, (25, 50, 75))
    ratio, promise = median_interval(dense / seconds), 1 / (1 - saved)
    return Speed(
        images_per_s=float(batch_size / middle),
        latency_ms=float(1e3 * middle),
        latency_q1_ms=float(1e3 * q1),
        latency_q3_ms=float(1e3 * q3),
        speedup=ratio.median,
        speedup_lo=ratio.low,
        speedup_hi=ratio.high,
        promise=promise,
        promise_share=ratio.median / promise,
        peak_mem_mb=peak,
    )
