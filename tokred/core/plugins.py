"""Import of third-party files and modules that the user names; nothing else in tokred runs foreign code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tokred.errors import TokredError
from tokred.utils.text import visible

_EXPECTED = "expected the path of a .py file or the dotted name of a module"


def module_name(target: str) -> str:
    """Name of a plugin in `sys.modules`: a module's own name, or a unique one for a path."""
    if not _is_path(target) or "\0" in target:  # which no path has
        return target
    path = Path(os.path.realpath(target))
    digest = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()
    return f"tokred_plugin_{path.stem}_{digest[:12]}"


def load(target: str) -> ModuleType:
    """Import a plugin, once: the path of a .py file, or a module's dotted name.

    While it is imported its own folder (of a path) or the current one (of a name) comes last on `sys.path`:
    helpers beside it are found, installed modules are not shadowed, and nothing of that remains.

    Raises:
        TokredError: it does not exist, or fails; the sentence names the file, the exception and the line.
    """
    name = module_name(target)
    if name in sys.modules:
        return sys.modules[name]
    if "\0" in target:
        raise TokredError(f"There is no Python file {target!r}; {_EXPECTED}.")
    path = Path(os.path.realpath(target))
    if _is_path(target) and not (path.is_file() and path.suffix == ".py"):
        raise TokredError(f"There is no Python file {target!r}; {_EXPECTED}.")
    try:
        with _findable(path.parent if _is_path(target) else Path.cwd()):
            return _execute(name, path) if _is_path(target) else importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the code is somebody else's: anything may come out of it
        raise TokredError(_explain(target, error)) from error


def _is_path(target: str) -> bool:
    return not target or target.endswith(".py") or "/" in target or "\\" in target


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("Python has no loader for it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _findable(folder: Path) -> Iterator[None]:
    importlib.invalidate_caches()  # the file may be younger than what Python remembers of the folder
    entry = str(folder)
    ours = entry not in sys.path
    if ours:
        sys.path.append(entry)
    try:
        yield
    finally:
        if ours and entry in sys.path:
            sys.path.remove(entry)


def _explain(target: str, error: BaseException) -> str:
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if not _is_machinery(frame.filename)]
    if isinstance(error, ModuleNotFoundError) and not frames and f"{target}.".startswith(f"{error.name}."):
        return f"There is no module {target!r}; {_EXPECTED}."
    file, line, message = target, None, str(error)
    if isinstance(error, SyntaxError) and error.filename:
        file, line, message = error.filename, error.lineno, error.msg
    elif frames:
        file = frames[0].filename
        line = [frame.lineno for frame in frames if frame.filename == file][-1]
    what = message.strip().splitlines()[0] if message.strip() else "no message"
    kind = "" if isinstance(error, TokredError) else f"{type(error).__name__}: "
    place = "" if line is None else f" (line {line})"
    return visible(
        f"The plugin {file} cannot be loaded: {kind}{what.rstrip('.')}{place}; fix it, or leave it out."
    )


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen ") or filename == importlib.__file__
