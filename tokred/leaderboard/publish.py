"""Reading a whole board, and writing its pages and exports."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tokred.errors import TokredError, did_you_mean
from tokred.leaderboard import cells
from tokred.leaderboard.board import locked
from tokred.leaderboard.export import FORMATS, markdown
from tokred.leaderboard.page import page
from tokred.leaderboard.ranked_row import CSV_NAME, RankedRow, load, read, run_of
from tokred.leaderboard.ranking_groups import settings
from tokred.utils.atomic import replace_file
from tokred.utils.files import is_stream, read_bytes

_READS = 10  # attempts to read a board that nobody writes to at the same time


def build(board: Path, target: Path | None, title: str) -> str:
    """Write the pages of a board: HTML at `target`, by default beside the board, and Markdown beside that.

    Returns:
        A sentence about the board, and the names of the pages.

    Raises:
        TokredError: there is no board, it is not a leaderboard, or a page cannot be written.
    """
    path = find(board)
    html = target or path.with_suffix(".html")
    if html.suffix in (".csv", ".md") or is_stream(html):
        raise TokredError(f"--page takes the name of an HTML file, such as board.html; got {html}.")
    groups = settings(ranked_rows(path))
    _write(html, page(groups, title))
    _write(html.with_suffix(".md"), markdown(groups, title))
    return f"{cells.counted(groups)} Pages: {html}, {html.with_suffix('.md')}"


def export(board: Path, name: str, title: str, target: Path | None) -> str:
    """Export a board in another format, to a file if `target` is given.

    Raises:
        TokredError: the format is unknown, there is no board or nothing to export, or the file cannot be
            written.
    """
    if name not in FORMATS:
        raise TokredError(did_you_mean("--format", name, list(FORMATS)))
    text = FORMATS[name](settings(ranked_rows(find(board))), title)
    if target is not None:
        _write(target, text)
    return text


def find(path: Path) -> Path:
    """The CSV of a board, or of a run by its folder; a `TokredError` if there is none."""
    file = path / CSV_NAME if path.is_dir() else path
    if not file.exists():
        advice = f"create it with tokred leaderboard add RUN --board {path}"
        raise TokredError(f"There is no leaderboard at {path}; {advice}.")
    return Path(os.path.realpath(file))


def ranked_rows(board: Path) -> list[RankedRow]:
    """Read the rows of a board with their evidence, all from the same state of the board.

    Writers are locked out; if the folder cannot be written, the board is read until it does not change
    meanwhile. Rows of a run with damaged predictions are read without them.
    """
    run = None
    with contextlib.suppress(TokredError):
        run = run_of(board)
    read(board)  # what is no board is refused before a lock lies beside it
    with contextlib.ExitStack() as stack:
        if os.access(board.parent, os.W_OK):
            with contextlib.suppress(TokredError):
                stack.enter_context(locked(board, 60))
        for _ in range(_READS):
            before, rows = read_bytes(board), load(board, run)
            if read_bytes(board) == before:
                break
        return rows


def _write(file: Path, text: str) -> None:
    replace_file(file, text.encode("utf-8", "backslashreplace"), "choose another file")
