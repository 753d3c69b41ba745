"""The folder of a run while it is written, so that it survives a kill and no other process writes there.

Every file is replaced in one step, so a reader sees either the old one or the new one. The predictions of a
run are in `outcomes/` until it is finished, then in `predictions.npz`; the same command resumes from either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tokred.errors import TokredError
from tokred.evaluation.predictions import Evaluation
from tokred.evaluation.run_folder import FILES, OPTIONAL, read_about
from tokred.utils.atomic import check_writable, replace_file, sweep, writing
from tokred.utils.files import read_bytes

_PARTS, _PREVIOUS, _LOCK = "outcomes", "previous", ".lock"


class Folder:
    """The folder of one run.

    Args:
        path: the folder, created if it does not exist.
        configuration: the user's choices that determine the results.
        software: versions of code and libraries that determine the results.
        about: further contents of run.json from the start; a resumed run keeps its own.
        lock: whether to keep other processes out; of several processes that share a run, the first does.

    Attributes:
        notice: a sentence about an earlier run in the folder; empty if there was none.
        read_only: whether this is a finished run that can be shown but not written.

    Raises:
        TokredError: the folder contains files that do not belong to a run, is in use, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        configuration: Mapping[str, Any],
        software: Mapping[str, Any],
        about: Mapping[str, Any],
        lock: bool = True,
    ) -> None:
        self.path, self.notice, self.read_only = path, "", False
        identity = {"configuration": dict(configuration), "software": dict(software)}
        self.run = _plain({**identity, **about, "finished": False})
        self._lock = FileLock(path / _LOCK, timeout=0)
        try:
            check_writable(path)
        except TokredError:
            if not self._open_read_only():
                raise
        if lock and not self.read_only:
            before = (path / _LOCK).exists()
            self._acquire()
            try:
                self._take_over()
            except BaseException:
                self.release()
                if not before:  # nothing is left in a folder that is not a run's
                    with contextlib.suppress(OSError):
                        (path / _LOCK).unlink()
                raise

    def _open_read_only(self) -> bool:
        """Open the finished run in the folder if it is the same run."""
        file = self.path / "run.json"
        before = read_about(file, "choose another folder with --out") if file.is_file() else {}
        self.read_only = bool(before.get("finished")) and not self._changes(before)
        self.run = before if self.read_only else self.run
        return self.read_only

    def _changes(self, before: Mapping[str, Any]) -> list[str]:
        """Names of the settings and software in which another run differs from this one."""
        pairs = [(before.get(part, {}), self.run[part]) for part in ("configuration", "software")]
        return [key for then, now in pairs for key in sorted({*then, *now}) if then.get(key) != now.get(key)]

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise TokredError(
                f"Another process is writing to {self.path}; "
                "wait for it, or choose another folder with --out."
            ) from None
        except (OSError, NotImplementedError):
            pass  # a file system without locks: files are still replaced in one step

    def _take_over(self) -> None:
        """Resume the run in the folder, or move it aside if something that determines its results differs."""
        file = self.path / "run.json"
        for folder in (self.path, self.path / _PARTS):
            sweep(folder)
        if file.exists():
            before = read_about(file, "choose another folder with --out")
            changed = self._changes(before)
            if changed:
                aside = self._move(self.path, self.path / _PREVIOUS / _key(before), (*OPTIONAL, *FILES))
                self.notice = (
                    f"The run in {self.path} differs in {', '.join(changed)}. It was moved to {aside}, "
                    "and this one starts from the beginning."
                )
        else:
            foreign = [name for name in (*FILES, _PARTS) if (self.path / name).exists()]
            if foreign:
                raise TokredError(
                    f"{self.path} contains {foreign[0]} but no run.json, so it is not a run of tokred; "
                    "choose another folder with --out."
                )
        earlier = self.path / _PREVIOUS / self.key
        if earlier.exists():  # this run was moved aside before, or is being moved back: run.json comes first
            self._move(earlier, self.path, (*OPTIONAL, *FILES)[::-1])
            self.notice = self.notice.replace("starts from the beginning", f"resumes the one in {earlier}")
        if file.exists():
            self.run = read_about(file, "choose another folder with --out")
        else:
            self._begin()

    @property
    def key(self) -> str:
        """A hash of everything that determines the results of the run."""
        return _key(self.run)

    def _begin(self) -> None:
        self.write("run.json", json.dumps(self.run, indent=2) + "\n")

    def _move(self, source: Path, target: Path, names: Sequence[str]) -> Path:
        """Move a run. To survive a kill, run.json is moved aside last, and moved back first."""
        with writing(target, "choose another folder with --out"):
            target.mkdir(parents=True, exist_ok=True)
            for name in (names[0], _PARTS, *names[1:]):
                if (source / name).exists():
                    if (target / name).is_dir():
                        shutil.rmtree(target / name)
                    os.replace(source / name, target / name)
            if source != self.path:
                shutil.rmtree(source, ignore_errors=True)
        return target

    @property
    def finished(self) -> bool:
        """Whether the run in the folder is finished."""
        return bool(self.run.get("finished")) and (self.path / "predictions.npz").exists()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file in one step; see `replace_file`."""
        replace_file(self.path / name, _encoded(content))

    @property
    def damaged(self) -> list[str]:
        """Files of a finished run that were changed or removed after it ended."""
        hashes = {"predictions.npz": "", **dict.fromkeys(FILES, ""), **self.run.get("contents", {})}
        del hashes["run.json"]
        return [name for name, digest in hashes.items() if not self._unchanged(name, digest)]

    def _unchanged(self, name: str, digest: str) -> bool:
        """Whether a file has the recorded contents; predictions are checked where they are read."""
        try:
            data = read_bytes(self.path / name)
        except OSError:
            return False
        return name == "predictions.npz" or _hash(data) == digest

    def finish(self, run: Mapping[str, Any], files: Mapping[str, str | bytes]) -> None:
        """Write the results of the run, `run.json` last, which marks the run as finished."""
        for name, content in files.items():
            self.write(name, content)
        contents = {name: _hash(_encoded(content)) for name, content in files.items()}
        self.run = {**self.run, **_plain(run), "contents": contents, "finished": True}
        self._begin()
        shutil.rmtree(self.path / _PARTS, ignore_errors=True)

    def release(self) -> None:
        """Release the lock, for other processes."""
        self._lock.release()

    def load_predictions(self, evaluation: Evaluation) -> None:
        """Load all stored predictions of this run; damaged files and those of other runs are ignored."""
        evaluation.key = self.key
        for file in (self.path / "predictions.npz", *sorted((self.path / _PARTS).glob("*.npz"))):
            with contextlib.suppress(OSError, ValueError):
                evaluation.absorb(read_bytes(file))

    def save_predictions(self, evaluation: Evaluation, images: np.ndarray, seconds: float) -> None:
        """Save the predictions of some images, given by their indices."""
        self.write(f"{_PARTS}/{int(images[0]):09d}.npz", evaluation.take(images, seconds=seconds).pack())


def _key(run: Mapping[str, Any]) -> str:
    """A hash of what determines the results of a run."""
    identity = {part: run.get(part, {}) for part in ("configuration", "software")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON returns them."""
    return dict(json.loads(json.dumps(dict(values))))
