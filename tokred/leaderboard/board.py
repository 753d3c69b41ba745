"""Merging runs into one CSV, the board, that many processes may add to at once.

`read` a board or a run, `merge` rows into it, `write` it in one step; `add` does the three under a lock, and keeps each row's evidence
beside the CSV. Rows stay text here, as the CSV holds them, so that a merge rewrites no number. This module imports no torch: adding to a
board is quick.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from tokred.errors import TokredError
from tokred.leaderboard.evidence import PREDICTIONS, Evidence, Line, RunOutcomes, number
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.exclusions import all_marks, remark
from tokred.tables.row import BASELINE, COLUMNS, SCHEMA, Row, csv_cell
from tokred.utils.atomic import replace_file, sweep, writing

CSV_NAME = "leaderboard.csv"
FIRST_SCHEMA = COLUMNS.index("date") + 1  # how many columns the first boards had

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
        "protocol",
        "stages",
    ),
    *("img_size", "crop_pct", "interpolation", "precision", "device", "batch_size", "seed", "on_error"),
)
"""What a row asks: which method, on which weights and images, at which budget and settings.

Some columns count in part: without a `weights_hash` or `data_hash` the name in `weights` or `dataset` stands for it; `stages` only where
they were chosen (protocol "custom"), since elsewhere they follow from method and protocol; `knob` only without a budget, from which it
would follow; of `device` the kind, without its number."""

IDENTITY = (*QUESTION, "training", "adapter", "unfitted")
"""What makes two rows the same thing: the question, and whose fitted parameters answer it.

Not in it: scores, times and errors, which are the answer; `tokens` and FLOPs, which follow from budget or knob; versions, commit and
date, by which a result is renewed."""


@dataclass(frozen=True)
class Change:
    """What `add` did with the rows given: new ones, ones that took an older one's place, and ones that the board had better."""

    added: int
    replaced: int
    kept: int
    total: int  # rows on the board now
    remarks: tuple[str, ...] = field(
        default=(), compare=False
    )  # sentences about rows that the board marks, and evidence that is missing


@dataclass
class _Given:
    """Rows to add, with their evidence and what speaks against them, by the `id` of the row."""

    lines: list[Line] = field(default_factory=list)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    disputed: dict[int, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def add(board: Path, *sources: Path | Sequence[Row], timeout: float = 60) -> Change:
    """Merge runs into a board, which is made where there is none. Safe beside other processes that do the same, and beside readers.

    Args:
        board: the CSV.
        sources: folders of runs, CSV files, or rows.
        timeout: seconds to wait for other writers.

    Raises:
        TokredError: a source is no run; the board is no leaderboard, of a newer schema, locked for `timeout`, or cannot be written. The
            board is then unchanged.
    """
    board = Path(os.path.realpath(board))  # to replace a link would part it from the file that others write
    given = _Given()
    for source in sources:
        _gather(source, board, given)
    store, fresh = Store(board), set(map(id, given.lines))
    with locked(board, timeout):
        after, change = merge(read(board) if board.exists() else [], given.lines)
        rows = {key(line): line for line in after}
        taken = {row: line for row, line in rows.items() if id(line) in fresh}
        for row, line in taken.items():
            if id(line) in given.evidence:
                store.put(row, given.evidence[id(line)])
        store.drop(row for row, line in taken.items() if id(line) not in given.evidence)
        write(board, after)
        store.clean(rows, taken)
    about = remark(taken.values(), all_marks(after), given.disputed)
    return replace(change, remarks=(*given.remarks, *filter(None, [about])))


def read(path: Path) -> list[Line]:
    """The rows of a leaderboard. One of an older schema is upgraded: the columns that it lacks are empty.

    Raises:
        TokredError: it cannot be read, is no leaderboard, or was written by a newer tokred.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write the mark
        header, *body = csv.reader(io.StringIO(text, newline=""), strict=True)
    except OSError as error:
        raise TokredError(f"The leaderboard {path} cannot be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TokredError(
            f"{path} is no leaderboard of tokred, or damaged ({error}); move it away."
        ) from error
    except ValueError:
        raise TokredError(f"{path} is empty, not even a header is left; remove it to start anew.") from None
    _check_header(path, header)
    body = [cells for cells in body if cells]  # an editor may leave an empty line at the end
    for place, cells in enumerate(body, start=1):
        if len(cells) != len(header):
            raise TokredError(
                f"{path} is damaged: its row {place} has {len(cells)} cells for {len(header)} columns; move it away."
            )
    lines = [{**dict.fromkeys(COLUMNS, ""), **dict(zip(header, cells, strict=True))} for cells in body]
    newer = next((line["schema"] for line in lines if line["schema"] not in _SCHEMAS), None)
    if newer is not None:
        raise TokredError(
            f"{path} has rows of schema {newer!r}, and this tokred knows those up to {SCHEMA}; update tokred."
        )
    return lines


_SCHEMAS = frozenset(("", *map(str, range(1, SCHEMA + 1))))


def _check_header(path: Path, header: list[str]) -> None:
    known = len(header)
    if tuple(header[: len(COLUMNS)]) == COLUMNS and known > len(COLUMNS):
        raise TokredError(
            f"{path} was written by a newer tokred: this one does not know its column {header[len(COLUMNS)]!r}; update tokred."
        )
    if known < FIRST_SCHEMA or tuple(header) != COLUMNS[:known]:
        odd = next((name for name, own in zip(header, COLUMNS, strict=False) if name != own), None)
        what = (
            "some columns are missing"
            if odd is None
            else f"column {odd!r} is not one of tokred's at this place"
        )
        raise TokredError(f"{path} is no leaderboard of tokred: {what}; choose another file.")


def merge(before: Iterable[Line], lines: Iterable[Line]) -> tuple[list[Line], Change]:
    """The rows of both, each thing (see `IDENTITY`) once, in an order that depends on the rows alone.

    A measurement beats what failed or could not run, whichever came first; of two of a kind the later date wins, and on the same day the
    one added now. Once a question is measured, rows that failed to answer it go: they tell nothing any more.
    """
    slots = {key(line): line for line in before}
    known, given = set(slots), list(lines)
    for line in given:
        row = key(line)
        if row not in slots or _worth(slots[row]) <= _worth(line):
            slots[row] = line
    answered = {key(line, QUESTION) for line in slots.values() if _measured(line)}
    after = {
        row: line for row, line in slots.items() if _measured(line) or key(line, QUESTION) not in answered
    }
    fresh = set(map(id, given))
    taken = {row for row, line in after.items() if id(line) in fresh}
    change = Change(len(taken - known), len(taken & known), len(given) - len(taken), len(after))
    return [line for _, line in sorted(after.items(), key=lambda item: (_order(item[1]), item[0]))], change


def write(board: Path, lines: Iterable[Line]) -> None:
    """Write a board in one step: a reader, or whoever comes after a kill, finds the old one or the new one. Hold the lock.

    Raises:
        TokredError: it cannot be written; the old one is unchanged.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    sweep(board.parent, board.name)  # of writers that were killed: under the lock there is no other
    replace_file(board, text.getvalue().encode("utf-8"))


@contextmanager
def locked(board: Path, timeout: float) -> Iterator[None]:
    """Only one process at a time, on this board. The lock is the kernel's where it can be, and then dies with its holder."""
    path = board.with_name(f".{board.name}.lock")
    lock = FileLock(path, timeout=timeout)
    with writing(board.parent, "choose another place with --board"):
        board.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise TokredError(
                f"{board} has been locked by another process for {timeout:g} s; wait for it, or remove {path} "
                "if none is running."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _gather(source: Path | Sequence[Row], board: Path, given: _Given) -> None:
    """Enter a source's rows, with the evidence that a run has in its folder and another board beside its CSV."""
    if not isinstance(source, Path):
        given.lines += [
            {field.name: csv_cell(getattr(row, field.name)) for field in fields(Row)} for row in source
        ]
        return
    path = source / CSV_NAME if source.is_dir() else source
    if not path.exists():
        raise TokredError(
            f"There is no run at {source}; give the folder of a run, with its {CSV_NAME}, or a CSV file of that form."
        )
    if board.exists() and path.samefile(board):
        raise TokredError(f"{source} is the board itself; give runs to add to it, or another --board.")
    lines = read(path)
    given.lines += lines
    try:
        run = run_of(path)
    except ValueError as error:
        run = None
        given.remarks.append(f"{error}, so its rows are added without per-image outcomes.")
    for line in lines:
        evidence = run.of(line) if run else Store(path).get(key(line), line)[0]
        if evidence is not None:
            given.evidence[id(line)] = evidence
        if run and (claims := run.claims(line)):
            given.disputed[id(line)] = claims


def run_of(path: Path) -> RunOutcomes | None:
    """The per-image outcomes of the run whose CSV this is; None for any other CSV.

    Raises:
        ValueError: they are damaged.
    """
    return (
        RunOutcomes(path.parent) if path.name == CSV_NAME and (path.parent / PREDICTIONS).is_file() else None
    )


def _measured(line: Line) -> bool:
    return line["status"] == "ok"


def _worth(line: Line) -> tuple[bool, str]:
    return _measured(line), line["date"]


def key(line: Line, columns: Sequence[str] = IDENTITY) -> tuple[str, ...]:
    """What a row is by some columns; see `QUESTION` and `IDENTITY`."""
    seen = {
        **line,
        "weights_hash": line["weights_hash"] or line["weights"],
        "data_hash": line["data_hash"] or line["dataset"],
        "knob": "" if line["budget"] else line["knob"],
        "stages": line["stages"] if line["protocol"] == "custom" else "",
        "device": line["device"].partition(":")[0],
        "unfitted": line["unfitted"] or "false",  # boards from before the column had fitted rows alone
    }
    return tuple(seen[name] for name in columns)


def _order(line: Line) -> tuple[object, ...]:
    """Rows that compare stand together: the baseline first, then the best first, as in a run's own table; what failed last."""
    group = (line["dataset"], line["split"], line["model"], line["weights_hash"], number(line["budget"]) or 0)
    score = number(line["top1"] or line["agreement"]) or 0
    best = (
        line["method"] != BASELINE,
        not _measured(line),
        -score,
        number(line["gflops"]) or 0,
        line["method"],
    )
    return (*group, *best)
