"""Hashes of the code and libraries that decide a run's numbers."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy
import PIL
import timm
import torch

from tokred.core import registry
from tokred.core.entries import file_of
from tokred.errors import TokredError
from tokred.utils.provenance import code_hash

_SESSION = secrets.token_hex(16)


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
    """SHA-256 over the source of a third party's method and the modules beside it that it has imported."""
    digest = hashlib.sha256(source_hash(name).encode())
    source = getattr(sys.modules.get(registry.get(name).__module__), "__file__", None)
    folder = Path(os.path.realpath(source or ".")).parent
    if source is None or folder.name in ("site-packages", "dist-packages"):
        return digest.hexdigest()  # beside a single installed file is what belongs to everybody
    files = {
        Path(os.path.realpath(found))
        for found in (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        if found and Path(found).is_absolute()  # torch has modules whose file is a bare name
    }
    helpers = {file for file in files if folder in file.parents and file.suffix == ".py" and file.is_file()}
    for file in sorted(helpers):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def source_hash(name: str) -> str:
    """SHA-256 of the source file that defines a method's class, as hexadecimal digits.

    What the file imports is not in it; `code_hash` covers tokred itself. A class without a source file, typed
    into a session, has a hash of its own in every process, so that nobody takes two such methods for the
    same.

    Raises:
        UnknownName: no such method.
        TokredError: it cannot be imported, or its source file cannot be read.
    """
    cls = registry.get(name)
    path = Path(file_of(cls))
    if not path.is_file():
        return hashlib.sha256(f"{_SESSION} {cls.__module__} {cls.__qualname__}".encode()).hexdigest()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TokredError(f"The source of {name}, {path}, cannot be read ({error.strerror}).") from error
