"""Timing on a machine that may be busy: runs take turns, and ratios are taken within each round."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tokred.errors import TokredError
from tokred.utils import numbers

WARM_UP = 2  # untimed calls, which fill caches and compile; compilation can take place twice

Run = Callable[[], object]


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % confidence interval."""

    median: float
    low: float
    high: float


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    device: torch.device,
    *,
    least: float = 0.0,
    progress: Callable[[int], None] = lambda rounds: None,
    failed: dict[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Time all runs once in every round, in random order; return the seconds of each, [rounds], by name.

    Args:
        runs: functions by name; each has been called before.
        rounds: number of rounds.
        device: device to wait for before the clock is read.
        least: shortest measurement in seconds; a shorter run is called several times and averaged.
        progress: function called with 1 after every round.
        failed: dictionary that receives a sentence for each run that fails, which is then left out; without
            it a failure is raised.

    Raises:
        TokredError: a number of rounds that cannot be; see `check_rounds`.
    """
    check_rounds(rounds)
    calls = dict.fromkeys(runs, 1)
    if least:
        calls = {name: max(1, round(least / _seconds(run, 1, device))) for name, run in runs.items()}
    seconds = {name: np.empty(rounds) for name in runs}
    rng, names = np.random.default_rng(0), list(runs)
    for index in range(rounds):
        for name in rng.permutation(names):
            try:
                seconds[name][index] = _seconds(runs[name], calls[name], device)
            except (Exception, SystemExit) as error:  # a failed run must not stop the others
                if failed is None:
                    raise
                failed[name] = sentence(error)
                names.remove(name)
        progress(1)
    return {name: seconds[name] for name in names}


def check_rounds(rounds: int) -> None:
    """Check how often each model is to be timed.

    Raises:
        TokredError: less than once, or so often that it must be a mistake.
    """
    if not 1 <= rounds <= numbers.MOST_ROUNDS:
        raise TokredError(
            "--rounds is the number of times each model is timed, from 1 to "
            f"{numbers.MOST_ROUNDS:,}; got {rounds}."
        )


def sentence(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _seconds(run: Run, calls: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_interval(values: np.ndarray) -> Interval:
    """The median of independent values of any distribution, with its exact interval from order statistics.

    The k-th smallest and k-th largest of n values enclose the median with probability 1 - 2 P(Binomial(n,
    1/2) < k). The largest k with a probability of at least 95 % is used. Below six values the extremes are
    returned, although they do not reach 95 %.
    """
    from scipy.stats import binom

    ordered = np.sort(np.asarray(values, dtype=float))
    k = max(1, int(binom.ppf(0.025, len(ordered), 0.5)))
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[-k]))


def peak_bytes(run: Run, device: torch.device) -> int | None:
    """Peak size of the tensors that a run allocates, in bytes; None if unknown.

    On CUDA the allocator counts. On a CPU the profiler records every allocation and release of a tensor,
    which depends on shapes alone, not on the machine, its load, or the reserve of its allocator.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler warns of missing GPUs
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes], dtype=np.int64).max(initial=0))


def weight_bytes(model: nn.Module) -> int:
    """The size of a model's parameters and buffers in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
