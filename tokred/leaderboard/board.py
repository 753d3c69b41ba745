"""Merging runs into one CSV, the board, to which several processes may add at once.

`read` a board or a run, `merge` rows into it, `write` it in one step; `add` does the three under a lock, and
keeps each row's evidence beside the CSV. Nothing here imports torch, so adding to a board is quick.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from tokred.errors import TokredError
from tokred.evaluation.run_folder import Run, read_run
from tokred.leaderboard.evidence import PREDICTIONS, Evidence, claims, evidence_of
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.exclusions import all_exclusions, contradiction, summary
from tokred.tables.row import BASELINE, Row, csv_cell, from_csv, to_csv
from tokred.utils.atomic import replace_file, sweep, writing

CSV_NAME = "leaderboard.csv"

QUESTION = (
    *(
        "method",
        "options",
        "model",
        "weights_hash",
        "data_hash",
        "split",
        "n_images",
        "limited",
        "budget",
        "knob",
    ),
    *(
        "protocol",
        "stages",
        "img_size",
        "crop_pct",
        "interpolation",
        "precision",
        "device",
        "batch_size",
        "seed",
    ),
    "on_error",
)
"""What a row asks: which method, on which weights and images, at which budget and settings.

Some columns count in part. Without a `weights_hash` or `data_hash` the name in `weights` or `dataset` stands
for it. `stages` count where they were chosen (protocol "custom"); elsewhere they follow from method and
protocol. `knob` counts without a budget, from which it would follow, and `device` without its number."""

IDENTITY = (*QUESTION, "training", "adapter", "unfitted")
"""What makes two rows results of the same thing: the question, and the fitted parameters that answer it.

Scores, times and errors are not in it, since they are the answer; neither are `tokens` and FLOPs, which
follow from budget or knob, nor versions, commit and date, with which a result is renewed."""


@dataclass(frozen=True)
class Change:
    """The effect of `add`.

    Attributes:
        added: the number of new rows.
        replaced: the number of rows that took an older one's place.
        kept: the number of rows left out, because the board has something better.
        total: the number of rows on the board now.
        remarks: sentences about rows that are excluded from the ranking or refused, and about missing
            evidence.
    """

    added: int
    replaced: int
    kept: int
    total: int
    remarks: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class _Entry:
    """A row to add, its evidence, and the claims that its predictions do not support."""

    row: Row
    evidence: Evidence | None = None
    claims: Sequence[str] = ()


def add(board: Path, *sources: Path | Sequence[Row], timeout: float = 60) -> Change:
    """Merge runs into a board, which is made if there is none. Safe beside other writers and beside readers.

    A row without evidence is refused where it contradicts itself, and never replaces one that has evidence.

    Args:
        board: the CSV.
        sources: folders of runs, CSV files, or rows.
        timeout: seconds to wait for other writers.

    Raises:
        TokredError: a source is no run; the board is no leaderboard, is a newer tokred's, is locked for
            `timeout`, or cannot be written. The board is then unchanged.
    """
    board = Path(os.path.realpath(board))  # to replace a link would part it from the file that others write
    entries, remarks = list[_Entry](), list[str]()
    for source in sources:
        entries += _entries(source, board, remarks)
    store = Store(board)
    with locked(board, timeout):
        before = read(board) if board.exists() else []
        admitted = [entry for entry in entries if not _refused(entry, store, remarks)]
        after, change = merge(before, [entry.row for entry in admitted])
        rows, fresh = {key(row): row for row in after}, {id(entry.row): entry for entry in admitted}
        taken = {identity: fresh[id(row)] for identity, row in rows.items() if id(row) in fresh}
        for identity, entry in taken.items():
            if entry.evidence is not None:
                store.put(identity, entry.evidence)
        write(board, after)
        store.clean(rows, taken)
    disputed = {id(entry.row): entry.claims for entry in taken.values() if entry.claims}
    excluded = summary([entry.row for entry in taken.values()], all_exclusions(after), disputed)
    kept = change.kept + len(entries) - len(admitted)
    return replace(change, kept=kept, remarks=(*remarks, *filter(None, [excluded])))


def read(path: Path) -> list[Row]:
    """The rows of a leaderboard file.

    Raises:
        TokredError: it cannot be read, is no leaderboard, or was written by a newer tokred.
    """
    try:
        return from_csv(path.read_bytes().decode(), str(path))
    except OSError as error:
        raise TokredError(f"The leaderboard {path} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise TokredError(f"{path} is no leaderboard of tokred, or damaged ({error}).") from error


def merge(before: Iterable[Row], rows: Iterable[Row]) -> tuple[list[Row], Change]:
    """The rows of both, each thing (see `IDENTITY`) once, in an order that depends on the rows alone.

    A measurement beats what failed or could not run. Of two measurements, or two failures, the later date
    wins, and on the same day the row that is added now. Rows that failed to answer a question go once another
    row answers it.
    """
    slots, given = {key(row): row for row in before}, list(rows)
    known = set(slots)
    for row in given:
        identity = key(row)
        if identity not in slots or _worth(slots[identity]) <= _worth(row):
            slots[identity] = row
    answered = {key(row, QUESTION) for row in slots.values() if row.status == "ok"}
    after = {
        identity: row
        for identity, row in slots.items()
        if row.status == "ok" or key(row, QUESTION) not in answered
    }
    fresh = set(map(id, given))
    taken = {identity for identity, row in after.items() if id(row) in fresh}
    change = Change(len(taken - known), len(taken & known), len(given) - len(taken), len(after))
    return [row for _, row in sorted(after.items(), key=lambda item: (_order(item[1]), item[0]))], change


def write(board: Path, rows: Sequence[Row]) -> None:
    """Write a board in one step, holding its lock: a reader finds the old one or the new one, never a part.

    Raises:
        TokredError: it cannot be written; the old one is unchanged.
    """
    sweep(board.parent, board.name)  # of writers that were killed: under the lock there is no other
    replace_file(board, to_csv(rows).encode())


@contextmanager
def locked(board: Path, timeout: float) -> Iterator[None]:
    """Hold the board's lock, which only one process can. The kernel releases it if its holder dies.

    Raises:
        TokredError: another process holds it for `timeout` seconds, or the folder cannot be written.
    """
    path = board.with_name(f".{board.name}.lock")
    lock = FileLock(path, timeout=timeout)
    with writing(board.parent, "choose another place with --board"):
        board.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise TokredError(
                f"{board} has been locked by another process for {timeout:g} s; wait for it, or remove "
                f"{path} "
                "if none is running."
            ) from None
    try:
        yield
    finally:
        lock.release()


def run_of(path: Path) -> Run | None:
    """The run whose leaderboard this is, if it has its predictions; None for any other CSV.

    Raises:
        TokredError: the run is damaged.
    """
    has_predictions = path.name == CSV_NAME and (path.parent / PREDICTIONS).is_file()
    return read_run(path.parent) if has_predictions else None


def key(row: Row, columns: Sequence[str] = IDENTITY) -> tuple[str, ...]:
    """The values that identify a row, as text; see `QUESTION` and `IDENTITY`."""
    seen = replace(
        row,
        weights_hash=row.weights_hash or row.weights,
        data_hash=row.data_hash or row.dataset,
        knob=row.knob if row.budget is None else "",
        stages=row.stages if row.protocol == "custom" else "",
        device=row.device.partition(":")[0],
    )
    return tuple(csv_cell(getattr(seen, name)) for name in columns)


def _entries(source: Path | Sequence[Row], board: Path, remarks: list[str]) -> list[_Entry]:
    """A source's rows, with the evidence that a run has in its folder and another board beside its CSV."""
    if not isinstance(source, Path):
        return [_Entry(row) for row in source]
    path = source / CSV_NAME if source.is_dir() else source
    if not path.exists():
        raise TokredError(
            f"There is no run at {source}; give the folder of a run, with its {CSV_NAME}, or a CSV file of "
            "that "
            "form."
        )
    if board.exists() and path.samefile(board):
        raise TokredError(f"{source} is the board itself; give runs to add to it, or another --board.")
    rows, run = read(path), None
    try:
        run = run_of(path)
    except TokredError as error:
        remarks.append(f"The rows of {source} are added without their predictions: {error}")
    if run is not None:
        return [_Entry(row, evidence_of(run, row), claims(run, row)) for row in rows]
    store = Store(path)
    return [_Entry(row, store.get(key(row), row)[0]) for row in rows]


def _refused(entry: _Entry, store: Store, remarks: list[str]) -> bool:
    """Whether a row that has no evidence may not come onto the board."""
    row = entry.row
    if entry.evidence is not None or row.status != "ok":
        return False
    if reason := contradiction(row):
        remarks.append(f"A row of {row.method} is refused, because it contradicts itself: {reason}.")
        return True
    if store.holds(key(row)):
        remarks.append(
            f"A row of {row.method} without predictions is left out: the board has it with predictions."
        )
        return True
    return False


def _worth(row: Row) -> tuple[bool, str]:
    return row.status == "ok", row.date


def _order(row: Row) -> tuple[object, ...]:
    """The place of a row on the board: comparable rows stand together, in the order of a run's own table."""
    score = row.agreement if row.top1 is None else row.top1
    finite = score if score is not None and math.isfinite(score) else 0.0
    return (
        *(row.dataset, row.split, row.model, row.weights_hash, row.budget or 0),
        *(row.method != BASELINE, row.status != "ok", -finite, row.gflops or 0, row.method),
    )
