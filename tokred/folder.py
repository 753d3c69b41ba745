"""The folder of a run: it belongs to one configuration and one process at a time, and survives whatever happens to the run.

Every file is written beside its place and swapped in, so that a reader sees the old one or the new one, never a part. While a run goes on
its outcomes are in `outcomes/`; at its end they are in `predictions.npz`, and the same command finds them there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tokred.errors import TokredError
from tokred.files import check_writable, replace_file, sweep
from tokred.outcomes import Evaluation

FILES = ("leaderboard.csv", "predictions.npz", "table.md", "table.tex", "report.html", "run.json")
_OUTCOMES, _PREVIOUS, _LOCK = "outcomes", "previous", ".lock"
_INTERVAL = 10.0  # seconds of work that a kill may cost


class Folder:
    """The folder of one run.

    Args:
        path: is made where it does not exist.
        configuration: everything that the user chose and that decides the run's numbers.
        software: everything else that does: code and libraries.
        about: what else run.json says from the start; a run that goes on keeps it.
        lock: whether to keep other processes out; of several that share a run the first one does.

    Attributes:
        notice: a sentence about what was there before; empty if nothing was.

    Raises:
        TokredError: the folder holds files that are no run's, is in use, or cannot be written.
    """

    def __init__(
        self, path: Path, configuration: Mapping[str, Any], software: Mapping[str, Any], about: Mapping[str, Any], lock: bool = True
    ) -> None:
        self.path, self.notice = path, ""
        identity = {"configuration": dict(configuration), "software": dict(software)}
        self.run = _plain({**identity, **about, "finished": False})
        check_writable(path)
        self._lock = FileLock(path / _LOCK, timeout=0)
        if lock:
            self._acquire()
            try:
                self._take_over()
            except BaseException:
                self.release()
                raise

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise TokredError(f"Another process is writing to {self.path}; wait for it, or choose another folder with --out.") from None
        except (OSError, NotImplementedError):
            pass  # a file system without locks: files are swapped in whole all the same

    def _take_over(self) -> None:
        """Continue the run that is there, or put it aside if something that decides its numbers has changed since."""
        file = self.path / "run.json"
        for folder in (self.path, self.path / _OUTCOMES):
            sweep(folder)
        if not file.exists():
            foreign = [name for name in (*FILES, _OUTCOMES) if (self.path / name).exists()]
            if foreign:
                raise TokredError(f"{self.path} holds {foreign[0]} but no run of tokred (no run.json); choose another folder with --out.")
            self._begin()
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            configuration, software = dict(before["configuration"]), dict(before.get("software", {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TokredError(f"{file} is not a run of tokred; choose another folder with --out.") from error
        changed = _changed(configuration, self.run["configuration"]) + _changed(software, self.run["software"])
        if changed:
            aside = self._put_aside(configuration, software)
            self.notice = f"{self.path} holds a run with another {', '.join(changed)}: it is in {aside} now, and this one starts anew."
            self._begin()
        else:
            self.run = before

    def _begin(self) -> None:
        self.write("run.json", json.dumps(self.run, indent=2) + "\n")

    def _put_aside(self, *identity: Mapping[str, Any]) -> Path:
        """Move the run that is there below `previous/`; run.json last, so that a kill on the way leaves a run to put aside."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        aside = self.path / _PREVIOUS / key
        try:
            aside.mkdir(parents=True, exist_ok=True)
            for name in (_OUTCOMES, *FILES):
                if (self.path / name).exists():
                    if (aside / name).is_dir():
                        shutil.rmtree(aside / name)
                    os.replace(self.path / name, aside / name)
        except OSError as error:
            raise TokredError(f"The run in {self.path} cannot be put aside ({error.strerror}); choose another --out.") from error
        return aside

    @property
    def finished(self) -> bool:
        """Whether the run that is there has come to its end."""
        return bool(self.run.get("finished")) and (self.path / "predictions.npz").exists()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file and swap it in.

        Raises:
            TokredError: it cannot be written; what was there before is unchanged.
        """
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            replace_file(target, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise TokredError(f"Cannot write {target} ({error.strerror}); what was there before is unchanged.") from error

    def finish(self, run: Mapping[str, Any], files: Mapping[str, str | bytes]) -> None:
        """Write what the run leaves behind, `run.json` last: from then on it counts as finished."""
        for name, content in files.items():
            self.write(name, content)
        self.run = {**self.run, **_plain(run), "finished": True}
        self._begin()
        shutil.rmtree(self.path / _OUTCOMES, ignore_errors=True)

    def release(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def read_outcomes(self, evaluation: Evaluation) -> None:
        """Enter everything that is on disk; a file that cannot be read counts as not there."""
        stored = [self.path / "predictions.npz"] if self.finished else sorted((self.path / _OUTCOMES).glob("*.npz"))
        for file in stored:
            with contextlib.suppress(OSError, ValueError):
                evaluation.absorb(file.read_bytes())

    def write_outcomes(self, evaluation: Evaluation, rows: np.ndarray, seconds: float) -> None:
        """Keep some rows; see `Evaluation.pack`."""
        self.write(f"{_OUTCOMES}/{int(rows[0]):09d}.npz", evaluation.pack(rows, seconds))


class Record:
    """What a pass has found so far, in memory and, every few seconds, in its folder."""

    def __init__(self, evaluation: Evaluation, folder: Folder | None, processes: int = 1) -> None:
        self.evaluation, self.folder, self.processes = evaluation, folder, processes
        self._pending: list[np.ndarray] = []
        self._last = time.monotonic()

    def missing(self, batches: Sequence[range]) -> list[range]:
        """The batches that are not evaluated yet."""
        done = self.evaluation.done
        return [batch for batch in batches if not done[batch.start : batch.stop].all()]

    def finished(self, rows: np.ndarray) -> None:
        """A batch is done."""
        self._pending.append(rows)
        if time.monotonic() - self._last >= _INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet.

        Raises:
            TokredError: it cannot be written.
        """
        now = time.monotonic()
        if self._pending:
            rows, seconds = np.concatenate(self._pending), (now - self._last) / self.processes
            self.evaluation.seconds += seconds
            if self.folder:
                self.folder.write_outcomes(self.evaluation, rows, seconds)
            self._pending.clear()
        self._last = now


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    return dict(json.loads(json.dumps(dict(values))))
