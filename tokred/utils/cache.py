"""Small JSON files in the user's cache folder; whatever is wrong with one only costs time."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from tokred.errors import TokredError
from tokred.utils.atomic import replace_file
from tokred.utils.files import read_text


def read(name: str) -> dict[str, Any]:
    """The mapping in a file of the cache; an empty one where there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(read_text(_folder() / name))
        return values if isinstance(values, dict) else {}
    return {}


def write(name: str, values: dict[str, Any]) -> None:
    """Replace a file of the cache; a folder that cannot be written is left alone."""
    with contextlib.suppress(OSError, TokredError):
        replace_file(_folder() / name, json.dumps(values).encode())


def _folder() -> Path:
    """tokred's folder by the XDG base directory specification; an OSError if the user has no home folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if root.is_absolute():
        return root / "tokred"
    try:
        return Path.home() / ".cache" / "tokred"
    except RuntimeError as error:
        raise OSError(str(error)) from error
