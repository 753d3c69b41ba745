"""Which software made a result, and when."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import fvcore
import numpy
import PIL
import timm
import torch

from tokred import __version__, registry


def versions() -> dict[str, Any]:
    """Versions and the date, as rows and cards carry them."""
    return {
        "tokred": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "fvcore": fvcore.__version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def software(methods: Iterable[str]) -> dict[str, str]:
    """What besides a configuration decides a run's numbers: code and the libraries that compute or decode."""
    foreign = [name for name in methods if not registry.get(name).__module__.startswith("tokred.")]
    return {
        "code": code_hash(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        **{f"method {name}": _with_helpers(name) for name in foreign},
    }


def _with_helpers(name: str) -> str:
    """SHA-256 over the source of a method that is not tokred's, and over the modules beside it that it has imported."""
    digest = hashlib.sha256(registry.source_hash(name).encode())
    source = getattr(sys.modules.get(registry.get(name).__module__), "__file__", None)
    folder = Path(source or ".").resolve().parent
    if source is None or folder.name in ("site-packages", "dist-packages"):
        return digest.hexdigest()  # beside a single installed file is what belongs to everybody
    files = {Path(found).resolve() for found in (getattr(module, "__file__", None) for module in list(sys.modules.values())) if found}
    for file in sorted(file for file in files if folder in file.parents and file.suffix == ".py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """SHA-256 over the path and content of every Python file of tokred, as hexadecimal digits: another one may compute other numbers."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())  # the length keeps files from running into each other
        digest.update(content)
    return digest.hexdigest()


@cache
def _commit() -> str:
    """The commit of the source tree that tokred runs from; empty for an installed package."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if (here.parent / ".git").exists() else ""
