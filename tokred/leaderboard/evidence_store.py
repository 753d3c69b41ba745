"""The evidence of a board's rows: one small file for each, in the folder `B.rows/` beside the board `B.csv`.

A file is named after its row's identity and after its content. So it never has to change together with the
CSV: the file of a new result is written before the CSV names it, and that of the old one is removed
afterwards. A process that is killed in between, or reads meanwhile, has for every row of either CSV the file
that belongs to it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tokred.leaderboard.evidence import Evidence
from tokred.tables.row import Row
from tokred.utils.atomic import replace_file, sweep

Key = tuple[str, ...]  # a row's identity, from `board.key`


class Store:
    """The evidence beside one board. Callers that write hold the board's lock."""

    def __init__(self, board: Path) -> None:
        self.folder = board.with_name(f"{board.name.removesuffix('.csv')}.rows")

    def put(self, key: Key, evidence: Evidence) -> None:
        """Store a row's evidence. An earlier verification of the very same predictions is kept.

        Raises:
            TokredError: it cannot be written.
        """
        path = self.folder / f"{_stem(key)}-{evidence.digest}.npz"
        if evidence.verified is None and path.exists():
            with contextlib.suppress(ValueError, OSError):
                evidence = replace(evidence, verified=Evidence.unpack(path.read_bytes()).verified)
        replace_file(path, evidence.pack(), "the board is unchanged")

    def has(self, key: Key, evidence: Evidence) -> bool:
        """Whether this very evidence is stored."""
        return (self.folder / f"{_stem(key)}-{evidence.digest}.npz").exists()

    def holds(self, key: Key) -> bool:
        """Whether there is any evidence of a row."""
        return bool(self._files(key))

    def get(self, key: Key, row: Row) -> tuple[Evidence | None, Evidence | None]:
        """A row's evidence; and, if all that is stored for it contradicts the row, one of those instead."""
        stored = [evidence for path in self._files(key) if (evidence := _read(path)) is not None]
        fitting = next((evidence for evidence in stored if evidence.supports(row)), None)
        return fitting, stored[0] if stored and fitting is None else None

    def clean(self, rows: Mapping[Key, Row], touched: Iterable[Key]) -> None:
        """Remove the files of rows that the board no longer has, and what `touched` rows have replaced."""
        if not self.folder.is_dir():
            return
        sweep(self.folder)
        stems = {_stem(key) for key in rows}
        stale = [path for path in self.folder.glob("*-*.npz") if path.name.partition("-")[0] not in stems]
        for key in touched:
            paths = self._files(key)
            fitting = [path for path in paths if (evidence := _read(path)) and evidence.supports(rows[key])]
            stale += [path for path in paths if path not in fitting] if fitting else []
        for path in stale:
            with contextlib.suppress(OSError):
                path.unlink()

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
