"""Write files in one step, so that a reader, also after a kill, sees either the old file or the new one."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokred.errors import TokredError

UNCHANGED = "what was there before is unchanged"
_TEMPORARY = ".{name}.{token}.tmp"


@contextlib.contextmanager
def writing(path: Path, advice: str = UNCHANGED) -> Iterator[None]:
    """Turn an error of the operating system into a sentence that names `path` and ends with the advice.

    Raises:
        TokredError: the body of the `with` statement raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise TokredError(f"Cannot write {path} ({error.strerror or error}); {advice}.") from error


def replace_file(path: Path, data: bytes, advice: str = UNCHANGED) -> None:
    """Write a file in one step and make its folder if needed; an existing file keeps its permissions.

    Raises:
        TokredError: it cannot be written; an existing file is unchanged. The message ends with the advice.
    """
    temporary = path.with_name(_TEMPORARY.format(name=path.name, token=secrets.token_hex(4)))
    with writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_all(folder: Path, files: Mapping[str, bytes], advice: str = UNCHANGED) -> None:
    """Write files into a folder, each in one step.

    Raises:
        TokredError: one cannot be written. The message ends with the advice.
    """
    for name, content in files.items():
        replace_file(folder / name, content, advice)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of a file, or of all in a folder, have left; no writer may be at work."""
    for leftover in folder.glob(
        _TEMPORARY.format(name="*" if name is None else glob.escape(name), token="*")
    ):
        with contextlib.suppress(OSError):
            leftover.unlink()


def check_writable(folder: Path, option: str = "--out") -> None:
    """Make a folder and write into it, before hours of work depend on that.

    Args:
        folder: The output folder.
        option: What the user gives to choose another one.

    Raises:
        TokredError: it cannot be made or written, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise TokredError(f"{folder} is a file, and the results need a folder; choose one with {option}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise TokredError(
            f"The output folder {folder} cannot be written ({error.strerror}); choose another with {option}."
        ) from error


def check_writable_file(path: Path, option: str = "--out") -> None:
    """Make sure that a file can be written, before work depends on that; its folder is made.

    Raises:
        TokredError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise TokredError(f"{path} is a folder; give the name of a file with {option}.")
    check_writable(path.parent, option)
