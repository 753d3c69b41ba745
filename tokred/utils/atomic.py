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
from tokred.utils.files import is_stream

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

    The file behind a link is replaced, not the link. Devices and pipes, such as /dev/stdout, are written to.

    Raises:
        TokredError: it cannot be written; an existing file is unchanged. The message ends with the advice.
    """
    with writing(path, advice):
        if is_stream(path):
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        temporary = target.parent / _TEMPORARY.format(name=target.name, token=secrets.token_hex(4))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_all(folder: Path, files: Mapping[str, bytes], advice: str = UNCHANGED) -> None:
    """Write files into a folder, each in one step; see `replace_file`."""
    for name, content in files.items():
        replace_file(folder / name, content, advice)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of a file, or of all in a folder, have left; no writer may be at work."""
    pattern = _TEMPORARY.format(name="*" if name is None else glob.escape(name), token="*")
    for leftover in folder.glob(pattern):
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
        probe.unlink(missing_ok=True)  # another thread may have removed it
    except OSError as error:
        raise TokredError(
            f"The output folder {folder} cannot be written ({error.strerror}); choose another with {option}."
        ) from error


def check_writable_file(path: Path, option: str = "--out") -> None:
    """Raise a `TokredError` unless a file can be written, before work depends on that; its folder is made."""
    if os.path.isdir(path):
        raise TokredError(f"{path} is a folder; give the name of a file with {option}.")
    if not is_stream(path):
        check_writable(path.parent, option)
