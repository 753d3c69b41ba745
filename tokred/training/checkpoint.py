"""Checkpoints of training runs: written in one step, and read only by the run that wrote them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokred.errors import TokredError
from tokred.utils.atomic import check_writable


def save(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; `identity` is everything that decides the run's result.

    Raises:
        TokredError: it cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    try:
        torch.save({"identity": dict(identity), **state}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch
        raise TokredError(
            f"Cannot write the checkpoint {path} ({error}); the one before is unchanged."
        ) from error


def load(
    path: Path, identity: Mapping[str, Any], device: torch.device | None = None
) -> dict[str, Any] | None:
    """Read the state of this run's checkpoint; None if there is none. The folder is made if needed.

    Raises:
        TokredError: the folder cannot be written or holds another run, or the checkpoint cannot be read.
    """
    check_writable(path.parent)
    if not path.exists():
        return None
    try:
        state = dict(torch.load(path, map_location=device or "cpu", weights_only=True))
        before = dict(state["identity"])
    except Exception as error:
        raise TokredError(
            f"The checkpoint {path} was not written by this command, or is cut off; delete it to start anew."
        ) from error
    changed = [key for key in identity if before.get(key) != identity[key]]
    if changed:
        raise TokredError(
            f"{path.parent} holds a run with another {', '.join(changed)}; give another --out, or delete it."
        )
    return state
