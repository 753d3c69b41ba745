"""Checkpoints of training runs, written in one step and read only by the run that wrote them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokred.errors import TokredError
from tokred.utils.atomic import check_writable, writing
from tokred.utils.files import check_regular


def save(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint or raise a `TokredError`; `identity` is everything that determines the result."""
    temporary = path.with_suffix(".tmp")
    with writing(path):
        try:
            torch.save({"identity": dict(identity), **state}, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error)) from error
        os.replace(temporary, path)


def load(
    path: Path, identity: Mapping[str, Any], device: torch.device | None = None
) -> dict[str, Any] | None:
    """Read the checkpoint of this run, or None if there is none. The folder is created if needed.

    Raises:
        TokredError: the folder cannot be written or contains another run, or the checkpoint cannot be read.
    """
    check_writable(path.parent)
    if not path.exists():
        return None
    try:
        check_regular(path)
        state = dict(torch.load(path, map_location=device or "cpu", weights_only=True))
        before = dict(state["identity"])
    except Exception as error:
        raise TokredError(
            f"The checkpoint {path} is damaged or was not written by this command; delete it to start over."
        ) from error
    changed = [key for key in identity if before.get(key) != identity[key]]
    if changed:
        raise TokredError(
            f"{path.parent} contains a run that differs in {', '.join(changed)}; choose another folder with "
            "--out, or delete it."
        )
    return state
