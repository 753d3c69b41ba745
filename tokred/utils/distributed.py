"""Communication between processes, one for each device, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from tokred.errors import TokredError
from tokred.utils.devices import resolve_device

T = TypeVar("T")

# Processes that have done their share wait for the others; torch gives up after minutes.
_PATIENCE = timedelta(days=30)


class Processes:
    """This process among all processes of a run; a single one needs nothing.

    Attributes:
        rank: The number of this process; the first one, 0, writes all files.
        world: The number of processes.
    """

    _open = 0  # runs in this process that share the group; the last one closes it

    def __init__(self, device: torch.device) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.world > 1 and not distributed.is_initialized():
            try:
                distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
            except (ValueError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                raise TokredError(
                    f"{self.world} processes were asked for but cannot connect ({reason}); "
                    "start them with torchrun."
                ) from error
        Processes._open += 1

    @staticmethod
    def device(name: str) -> torch.device:
        """The device of this process: under torchrun the CUDA device of its local rank.

        Raises:
            TokredError: there is no such device.
        """
        local = os.environ.get("LOCAL_RANK")
        if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return resolve_device(name)
        if int(local) >= torch.cuda.device_count():
            raise TokredError(
                f"torchrun started a process for CUDA device {local}, but there are "
                f"{torch.cuda.device_count()} here; start fewer."
            )
        torch.cuda.set_device(int(local))
        return torch.device("cuda", int(local))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.world == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)

    def agree(self, step: int, tensors: Collection[Tensor]) -> None:
        """Copy the first process's tensors into those of all others.

        Raises:
            TokredError: the processes are not at the same step, for instance because they do not share a
                folder.
        """
        if self.world == 1:
            return
        steps = torch.tensor([step, -step], device=next(iter(tensors)).device)
        distributed.all_reduce(steps, op=distributed.ReduceOp.MAX)
        if int(steps[0]) != -int(steps[1]):
            raise TokredError(
                "The processes have checkpoints of different steps; give an --out that all of them share."
            )
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)

    def share(self, value: T) -> T:
        """Return the first process's value in all processes."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def alike(self, what: str, value: Mapping[str, Any]) -> None:
        """Check that all processes have the same values.

        Raises:
            TokredError: they do not; the message names the first difference.
        """
        for name, first in self.share(dict(value)).items():
            if first != value.get(name):
                raise TokredError(
                    f"The processes do not have the same {what}: process {self.rank} has another {name}; "
                    "make them alike."
                )

    def gather(self, value: T) -> list[T]:
        """Collect all processes' values in the first one; the others get an empty list."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.rank == 0 else None
        distributed.gather_object(value, values)
        return values or []

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the group, once for each `Processes`; the last one in this process destroys it."""
        Processes._open -= 1
        if self.world > 1 and not Processes._open and distributed.is_initialized():
            distributed.destroy_process_group()
