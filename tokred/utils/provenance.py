"""Which software made a result, and when."""

from __future__ import annotations

import hashlib
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import fvcore
import timm
import torch

from tokred import __version__


def versions() -> dict[str, Any]:
    """Versions of the software, and the date, for rows and cards."""
    return {
        "tokred": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "fvcore": fvcore.__version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


@cache
def code_hash() -> str:
    """SHA-256 over the path and content of every Python file of tokred, as hexadecimal digits."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())  # the length keeps files apart
        digest.update(content)
    return digest.hexdigest()


@cache
def _commit() -> str:
    """The commit of the source tree that tokred runs from; empty for an installed package."""
    here = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if (here.parent / ".git").exists() else ""
