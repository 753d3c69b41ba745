"""The evidence of a board's rows, in a folder beside the CSV: for `B.csv` it is `B.rows/`, one small file a row.

A file is named after what makes its row that row, and after its content. So it never has to change together with the CSV: the file of a
new result is written before the CSV names it and that of the old one removed afterwards, and whoever is killed in between, or reads
meanwhile, finds for every row of either CSV the file that belongs to it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tokred.leaderboard.evidence import Evidence, Line
from tokred.utils.atomic import replace_file, sweep

Key = tuple[str, ...]  # what makes two rows the same thing, `board.key`


class Store:
    """The evidence beside one board. All that writes is to hold the board's lock."""

    def __init__(self, board: Path) -> None:
        self.folder = board.with_name(f"{board.name.removesuffix('.csv')}.rows")

    def put(self, key: Key, evidence: Evidence) -> None:
        """Keep a row's evidence. What verified the very same outcomes before still holds.

        Raises:
            TokredError: it cannot be written.
        """
        path = self.folder / f"{_stem(key)}-{evidence.digest}.npz"
        if evidence.verified is None and path.exists():
            with contextlib.suppress(ValueError, OSError):
                evidence = replace(evidence, verified=Evidence.unpack(path.read_bytes()).verified)
        replace_file(path, evidence.pack(), "the board is unchanged")

    def has(self, key: Key, evidence: Evidence) -> bool:
        """Whether this very evidence is here."""
        return (self.folder / f"{_stem(key)}-{evidence.digest}.npz").exists()

    def get(self, key: Key, line: Line) -> tuple[Evidence | None, Evidence | None]:
        """A row's evidence and, where files are there and all speak against the row, one of those instead."""
        found = [evidence for path in self._files(key) if (evidence := _read(path)) is not None]
        fitting = next((evidence for evidence in found if evidence.supports(line)), None)
        return fitting, found[0] if found and fitting is None else None

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget rows that are to be replaced by ones without evidence: before they are, lest the old evidence speak against the new."""
        for key in keys:
            for path in self._files(key):
                _remove(path)

    def clean(self, lines: Mapping[Key, Line], touched: Iterable[Key]) -> None:
        """Remove the files of rows that the board no longer has and, of `touched` ones, those of what they replaced."""
        if not self.folder.is_dir():
            return
        sweep(self.folder)
        stems = {_stem(key) for key in lines}
        for path in self.folder.glob("*-*.npz"):
            if path.name.partition("-")[0] not in stems:
                _remove(path)
        for key in touched:
            paths = self._files(key)
            old = [
                path
                for path in paths
                if len(paths) > 1 and not ((found := _read(path)) and found.supports(lines[key]))
            ]
            for path in old if len(old) < len(paths) else []:
                _remove(path)

    def _files(self, key: Key) -> list[Path]:
        return sorted(self.folder.glob(f"{_stem(key)}-*.npz"))


def _stem(key: Key) -> str:
    return hashlib.sha256("\0".join(key).encode(errors="surrogatepass")).hexdigest()[:20]


def _read(path: Path) -> Evidence | None:
    """A damaged file counts as none: its row is ranked without it."""
    try:
        return Evidence.unpack(path.read_bytes())
    except (OSError, ValueError):
        return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
