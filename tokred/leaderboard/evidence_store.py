"""The evidence of a board's rows: one small file for each, in the folder `B.rows/` beside the board `B.csv`.

A file is named after the identity of its row and its own content, so files and CSV need not change at the
same time: the file of a new row is written before the CSV is replaced, and that of the old row is removed
afterwards. If a process is killed in between, or reads meanwhile, every row of either CSV has its file.
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
from tokred.utils.files import read_bytes

Key = tuple[str, ...]  # identity of a row, from `ranked_row.identity`


class Store:
    """The evidence beside one board. Callers that write hold the board's lock."""

    def __init__(self, board: Path) -> None:
        self.folder = board.with_name(f"{board.name.removesuffix('.csv')}.rows")

    def put(self, key: Key, evidence: Evidence) -> None:
        """Store the evidence of a row, see `replace_file`; an earlier verification of it is kept."""
        path = self._file(key, evidence)
        if evidence.verified is None and (before := _read(path)):
            evidence = replace(evidence, verified=before.verified)
        replace_file(path, evidence.pack(), "the board is unchanged")

    def has(self, key: Key, evidence: Evidence) -> bool:
        """Whether exactly this evidence is stored."""
        return self._file(key, evidence).exists()

    def holds(self, key: Key) -> bool:
        """Whether any evidence of a row is stored."""
        return bool(self._files(key))

    def get(self, key: Key, row: Row) -> Evidence | None:
        """The evidence of a row; preferably one that supports it, else any that is stored."""
        stored = [evidence for path in self._files(key) if (evidence := _read(path))]
        return next((one for one in stored if not one.contradicts(row)), next(iter(stored), None))

    def clean(self, rows: Mapping[Key, Row], touched: Iterable[Key]) -> None:
        """Remove the files of rows that are no longer on the board, and those replaced by `touched` rows."""
        if not self.folder.is_dir():
            return
        sweep(self.folder)
        stems = {_stem(key) for key in rows}
        stale = {path for path in self.folder.glob("*-*.npz") if path.name.partition("-")[0] not in stems}
        for key in touched:
            paths = set(self._files(key))
            fitting = {path for path in paths if (one := _read(path)) and not one.contradicts(rows[key])}
            stale |= paths - fitting if fitting else set()
        for path in stale:
            with contextlib.suppress(OSError):
                path.unlink()

    def _file(self, key: Key, evidence: Evidence) -> Path:
        return self.folder / f"{_stem(key)}-{evidence.digest}.npz"

    def _files(self, key: Key) -> list[Path]:
        return sorted(self.folder.glob(f"{_stem(key)}-*.npz"))


def _stem(key: Key) -> str:
    return hashlib.sha256("\0".join(key).encode(errors="surrogatepass")).hexdigest()[:20]


def _read(path: Path) -> Evidence | None:
    """The evidence in a file; None if it is damaged, and its row is then ranked without evidence."""
    try:
        return Evidence.unpack(read_bytes(path))
    except (OSError, ValueError):
        return None
