"""Reading files that users name: a pipe, a socket or a device is refused, since reading one may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

NOT_REGULAR = "is a pipe, a socket or a device, where a regular file is needed"


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or a socket, which has to be written to and not replaced."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # there is none, or there can be none
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_regular(path: Path) -> None:
    """Check that reading a path ends.

    Raises:
        OSError: it is a device, a pipe or a socket.
    """
    if is_stream(path):
        raise OSError(errno.EINVAL, f"it {NOT_REGULAR}", str(path))


def read_bytes(path: Path) -> bytes:
    """The contents of a regular file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    check_regular(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The contents of a regular file in UTF-8.

    Raises:
        OSError: it cannot be read, or is no regular file.
        UnicodeDecodeError: it has another encoding.
    """
    check_regular(path)
    return path.read_text(encoding="utf-8")
