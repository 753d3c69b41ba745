"""Writing files so that a reader, or whoever comes after a kill, finds the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from tokred.errors import TokredError

_TEMPORARY = ".{name}.{token}.tmp"


def replace_file(path: Path, data: bytes) -> None:
    """Write beside the file and swap it in. The rights of one that was there stay.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    temporary = path.with_name(_TEMPORARY.format(name=path.name, token=secrets.token_hex(4)))
    try:
        temporary.write_bytes(data)
        _sync(temporary)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """On the disk itself, or a power cut could leave the new name on an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left, of one file or of all in a folder, to which nobody else is writing."""
    for leftover in folder.glob(
        _TEMPORARY.format(name="*" if name is None else glob.escape(name), token="*")
    ):
        with contextlib.suppress(OSError):
            leftover.unlink()


def check_writable(path: Path) -> None:
    """Make a folder and write into it, before hours of work depend on that.

    Raises:
        TokredError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise TokredError(
            f"The output folder {path} cannot be written ({error.strerror}); choose another with --out."
        ) from error


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, each in one step.

    Raises:
        TokredError: one cannot be written.
    """
    try:
        for name, content in files.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise TokredError(
            f"Cannot write into {folder} ({error.strerror}); what was there before is unchanged."
        ) from error
