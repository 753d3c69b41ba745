"""The device, precision and mode in which models run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from tokred.errors import TokredError

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device to run on; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        TokredError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # each backend fails in its own way
        raise TokredError(
            f"The device {name!r} cannot be used here; try auto, cpu, or cuda where a GPU is."
        ) from error
    if device.type == "meta":
        raise TokredError("The device 'meta' computes nothing; try auto, cpu, or cuda where a GPU is.")
    return device


def precision_name(dtype: torch.dtype) -> str:
    """The name of a precision, such as "bf16"."""
    return next(name for name, other in _DTYPES.items() if other is dtype)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; "auto" is bfloat16 where the processor has it natively, else float32."""
    if name != "auto":
        if name not in _DTYPES:
            raise TokredError(f"Unknown precision {name!r}; choose auto, {', '.join(_DTYPES)}.")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which models run: matrix products have the dtype, by autocast unless it is float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the `with` statement; afterwards each part has its own mode again."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def default_batch_size(device: torch.device) -> int:
    """16 on a CPU, whose caches hold that much, and 256 elsewhere."""
    return 16 if device.type == "cpu" else 256


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an out-of-memory error; the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    messages = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
