"""Which software made a result, and when."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fvcore
import timm
import torch

from tokred import __version__


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
