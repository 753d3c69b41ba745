"""Reading a board as a whole, and writing its pages."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tokred.errors import TokredError, did_you_mean
from tokred.leaderboard import cells, ranking_groups
from tokred.leaderboard import export as exporting
from tokred.leaderboard.board import CSV_NAME, locked
from tokred.leaderboard.page import page
from tokred.leaderboard.ranking_groups import RankedRow
from tokred.utils.atomic import replace_file


@dataclass(frozen=True)
class Written:
    """The files of a board's pages, and a sentence about their content."""

    html: Path
    markdown: Path
    counted: str


def build(board: Path, target: Path | None, title: str) -> Written:
    """Write a board's pages: HTML at `target`, by default beside the board, and Markdown under the same name.

    Raises:
        TokredError: there is no board, it is none, or a page cannot be written.
    """
    path = find(board)
    html = target or path.with_suffix(".html")
    if html.suffix in (".csv", ".md"):
        raise TokredError(
            f"--page is an HTML file, and {html} would be taken for another kind; give a name that ends in "
            ".html."
        )
    settings = ranking_groups.settings(ranked_rows(path))
    texts = {html: page(settings, title), html.with_suffix(".md"): exporting.markdown(settings, title)}
    for file, text in texts.items():
        _write(file, text)
    return Written(html, html.with_suffix(".md"), cells.counted(settings))


def export(board: Path, name: str, title: str, target: Path | None) -> str:
    """A board in another form, written where a file is given.

    Raises:
        TokredError: no such form, no board, nothing to export, or the file cannot be written.
    """
    if name not in exporting.FORMATS:
        raise TokredError(did_you_mean("--format", name, list(exporting.FORMATS)))
    settings = ranking_groups.settings(ranked_rows(find(board)))
    text = exporting.FORMATS[name](settings, title)
    if target is not None:
        _write(target, text)
    return text


def find(path: Path) -> Path:
    """The CSV of a board, or of a run whose folder is given.

    Raises:
        TokredError: there is none.
    """
    file = path / CSV_NAME if path.is_dir() else path
    if not file.exists():
        raise TokredError(
            f"There is no leaderboard at {path}; make one with tokred leaderboard add RUN --board {path}."
        )
    return Path(os.path.realpath(file))


def ranked_rows(board: Path) -> list[RankedRow]:
    """A board's rows with their evidence, all of one moment.

    Writers are kept out; if the folder cannot be written, the board is read until it does not change
    meanwhile.
    """
    with contextlib.ExitStack() as stack:
        if os.access(board.parent, os.W_OK):
            with contextlib.suppress(TokredError):
                stack.enter_context(locked(board, 60))
        for _ in range(_READS):
            before, rows = board.read_bytes(), ranking_groups.load(board)
            if board.read_bytes() == before:
                break
        return rows


_READS = 10  # in which a board that somebody writes to comes to rest, or else the last one counts


def _write(file: Path, text: str) -> None:
    replace_file(file, text.encode("utf-8", "backslashreplace"), "choose another place for it")
