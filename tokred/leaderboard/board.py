"""Merging runs into one CSV, the board, to which several processes may add at once.

`add` merges runs into a board in one step and under a lock, and stores the evidence of each row beside the
CSV. Nothing here imports torch, so adding to a board is quick.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from tokred.errors import TokredError
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.exclusions import contradiction
from tokred.leaderboard.ranked_row import CSV_NAME, QUESTION, RankedRow, identity, load, read, run_of
from tokred.leaderboard.ranking_groups import exclude_and_part
from tokred.tables.row import BASELINE, Row, to_csv
from tokred.utils.atomic import replace_file, sweep, writing
from tokred.utils.files import is_stream


@dataclass(frozen=True)
class Change:
    """The effect of `add`.

    Attributes:
        added: the number of new rows.
        replaced: the number of rows that replaced an older one.
        kept: the number of rows that were not added, because the board has a better one.
        total: the number of rows on the board now.
        remarks: sentences about rows that are excluded from the ranking or refused, and about missing
            evidence.
    """

    added: int
    replaced: int
    kept: int
    total: int
    remarks: tuple[str, ...] = field(default=(), compare=False)


def add(board: Path, *sources: Path | Sequence[Row], timeout: float = 60) -> Change:
    """Merge runs into a board, which is created if needed. Safe for concurrent writers and readers.

    A row without evidence is refused if it contradicts itself, and never replaces one that has evidence.

    Args:
        board: the CSV.
        sources: folders of runs, CSV files, or rows.
        timeout: seconds to wait for other writers.

    Raises:
        TokredError: a source is not a run; the board is not a leaderboard, was written by a newer tokred, is
            locked for `timeout`, or cannot be written. The board is then unchanged.
    """
    board = Path(os.path.realpath(board))  # the file behind a link is replaced, not the link
    entries, remarks = list[RankedRow](), list[str]()
    for source in sources:
        entries += _entries(source, board, remarks)
    if board.is_dir() or is_stream(board):
        raise TokredError(f"{board} is no file, which a board needs; choose another --board.")
    store = Store(board)
    if board.exists():
        read(board)  # what is no board is refused before a lock lies beside it
    with locked(board, timeout):
        before = read(board) if board.exists() else []
        admitted = [entry for entry in entries if not _refused(entry, store, remarks)]
        after, change = merge(before, [entry.row for entry in admitted])
        rows, new = {identity(row): row for row in after}, {id(entry.row): entry for entry in admitted}
        taken = {key: new[id(row)] for key, row in rows.items() if id(row) in new}
        for key, entry in taken.items():
            if entry.evidence is not None:
                store.put(key, entry.evidence)
        sweep(board.parent, board.name)  # files of killed writers; under the lock there is no other writer
        replace_file(board, to_csv(after).encode())
        store.clean(rows, taken)
    kept = change.kept + len(entries) - len(admitted)
    return replace(change, kept=kept, remarks=(*remarks, *_excluded(rows, taken)))


def merge(before: Iterable[Row], rows: Iterable[Row]) -> tuple[list[Row], Change]:
    """The rows of both, one of each identity (see `IDENTITY`), in an order that depends on the rows alone.

    A measured row is preferred to one that failed or could not run. Of two measured rows, or two failures,
    the later date is preferred, and on the same day the row that is being added. Rows that failed are removed
    once there is a measured row for the same `QUESTION`.
    """
    slots, new = {identity(row): row for row in before}, list(rows)
    known = set(slots)
    for row in new:
        key = identity(row)
        if key not in slots or _worth(slots[key]) <= _worth(row):
            slots[key] = row
    answered = {identity(row, QUESTION) for row in slots.values() if row.status == "ok"}
    after = {
        key: row
        for key, row in slots.items()
        if row.status == "ok" or identity(row, QUESTION) not in answered
    }
    fresh = set(map(id, new))
    taken = {key for key, row in after.items() if id(row) in fresh}
    change = Change(len(taken - known), len(taken & known), len(new) - len(taken), len(after))
    return [row for _, row in sorted(after.items(), key=lambda item: (_order(item[1]), item[0]))], change


@contextmanager
def locked(board: Path, timeout: float) -> Iterator[None]:
    """Hold the board's lock, which only one process can hold. The kernel releases it if the process dies.

    Raises:
        TokredError: another process holds it for `timeout` seconds, or the folder cannot be written.
    """
    path = board.with_name(f".{board.name}.lock")
    lock = FileLock(path, timeout=timeout)
    with writing(board.parent, "choose another place with --board"):
        board.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # FileLock would wait for a folder that takes no files
        try:
            lock.acquire()
        except Timeout:
            advice = f"wait for it, or remove {path} if none is running"
            raise TokredError(
                f"{board} has been locked by another process for {timeout:g} s; {advice}."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _entries(source: Path | Sequence[Row], board: Path, remarks: list[str]) -> list[RankedRow]:
    """The rows of a source with their evidence, from the folder of a run or from beside another board."""
    if not isinstance(source, Path):
        return [RankedRow(row) for row in source]
    path, run = source / CSV_NAME if source.is_dir() else source, None
    if not path.exists():
        advice = f"give the folder of a run, which contains {CSV_NAME}, or such a CSV file"
        raise TokredError(f"There is no run at {source}; {advice}.")
    if board.exists() and path.samefile(board):
        raise TokredError(f"{source} is the board itself; give runs to add to it, or another --board.")
    try:
        run = run_of(path)
    except TokredError as error:
        remarks.append(f"The rows of {source} are added without their predictions: {error}")
    return load(path, run)


def _refused(entry: RankedRow, store: Store, remarks: list[str]) -> bool:
    """Whether a row without evidence is not admitted to the board."""
    row, reason = entry.row, ""
    if entry.evidence is None and row.status == "ok":
        if conflict := contradiction(row):
            reason = f"is refused because it contradicts itself: {conflict}"
        elif store.holds(entry.key):
            reason = "without predictions is left out: the board has the same row with predictions"
    if reason:
        remarks.append(f"A row of {row.method} {reason}.")
    return bool(reason)


def _excluded(rows: Mapping[tuple[str, ...], Row], taken: Mapping[tuple[str, ...], RankedRow]) -> list[str]:
    """A sentence about the added rows that are excluded from the ranking; none if there are none."""
    exclude_and_part([taken.get(key) or RankedRow(row) for key, row in rows.items()])
    methods: dict[str, list[str]] = {}
    for entry in taken.values():
        if entry.exclusions:
            methods.setdefault(entry.exclusions[0], []).append(entry.row.method)
    if not methods:
        return []
    count = sum(map(len, methods.values()))
    listing = "; ".join(f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in methods.items())
    return [f"{count} {'row is' if count == 1 else 'rows are'} excluded from the ranking: {listing}."]


def _worth(row: Row) -> tuple[bool, str]:
    return row.status == "ok", row.date


def _order(row: Row) -> tuple[object, ...]:
    """Sort key of a row on the board: comparable rows are together, in the order of a run's own table."""
    score = row.score
    finite = score if score is not None and math.isfinite(score) else 0.0
    return (
        *(row.dataset, row.split, row.model, row.weights_hash, row.budget or 0),
        *(row.method != BASELINE, row.status != "ok", -finite, row.gflops or 0, row.method),
    )
