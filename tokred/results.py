"""Rows of a comparison, and everything that a run leaves behind: CSV, Markdown, LaTeX, HTML, JSON and per-image predictions."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokred.errors import TokredError
from tokred.text import for_latex, for_markdown, visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

BASELINE = "baseline"
SCHEMA = 1  # one more whenever a column is appended or comes to mean something else
FILES = ("run.json", "leaderboard.csv", "predictions.npz", "table.md", "table.tex", "report.html")


@dataclass
class Row:
    """One line of a leaderboard; the field order is the column order, and columns are only ever appended.

    Budget, reduction, agreement and promise_share are fractions; top1, top5, drop and their limits are per cent; gflops count one
    multiply-accumulate as one; stages and tokens are space-separated. None is "not measured" and an empty cell. `adapter` is the hash
    of the fitted parameters, `unfitted` says that a learned method ran with random ones, `fitted_here` that
    these images fitted or chose them. `schema` is the version of these columns; rows from before it have none.
    """

    method: str
    options: str = ""
    control: bool = False
    model: str = ""
    dataset: str = ""
    split: str = ""
    n_images: int | None = None
    n_failed: int | None = None
    limited: bool = False
    budget: float | None = None
    reduction: float | None = None
    gflops: float | None = None
    reducer_gflops: float | None = None
    protocol: str = ""
    stages: str = ""
    tokens: str = ""
    knob: str = ""
    top1: float | None = None
    top1_lo: float | None = None
    top1_hi: float | None = None
    top5: float | None = None
    drop: float | None = None
    drop_lo: float | None = None
    drop_hi: float | None = None
    p_value: float | None = None
    agreement: float | None = None
    kl: float | None = None
    images_per_s: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    promise_share: float | None = None
    peak_mem_mb: float | None = None
    training: str = ""
    images_seen: int | None = None
    weights: str = ""
    weights_hash: str = ""
    data_hash: str = ""
    img_size: int | None = None
    crop_pct: float | None = None
    interpolation: str = ""
    precision: str = ""
    device: str = ""
    batch_size: int | None = None
    seed: int | None = None
    status: str = "ok"
    error: str = ""
    tokred: str = ""
    torch: str = ""
    timm: str = ""
    fvcore: str = ""
    commit: str = ""
    date: str = ""
    adapter: str = ""
    unfitted: bool = False
    fitted_here: bool = False
    schema: int = SCHEMA


COLUMNS = tuple(field.name for field in fields(Row))

TABLE_HEADERS = ("Method", "Top-1 (%)", "Drop", "95 % interval", "FLOPs (G)", "Reduction", "Training", "Note")


def rank(rows: Iterable[Row]) -> list[Row]:
    """The baseline first, then methods by accuracy, then by FLOPs, then by name; failed ones last."""

    def key(row: Row) -> tuple[Any, ...]:
        return (row.method != BASELINE, row.status != "ok", -(row.top1 or 0), row.gflops or 0, row.method)

    return sorted(rows, key=key)


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a data frame with all columns; what was not measured is None."""
    import pandas as pd

    return pd.DataFrame([[getattr(row, name) for name in COLUMNS] for row in rows], columns=list(COLUMNS), dtype=object)


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV with all columns: raw numbers, empty cells for what was not measured."""
    return str(frame(rows).map(csv_cell).to_csv(index=False, lineterminator="\n"))


def csv_cell(value: Any) -> str:
    r"""A value as CSV holds it. Lines end in \n alone, and what is no text (half a surrogate pair, NUL) is written as Python writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def display(row: Row) -> tuple[str, ...]:
    """The cells of the short table: what the paper's tables show, with the interval and the training beside it."""
    note = [row.options] if row.options else []
    if row.control:
        note.append("control")
    if row.unfitted:
        note.append("unfitted: random parameters, no result")
    if row.fitted_here:
        note.append("fitted on or chosen by these images")
    if row.limited:
        note.append(f"first {row.n_images} images only")
    if row.status != "ok":
        note.append(row.error if row.status == "unfitted" else f"{row.status}: {row.error}")
    elif row.method != BASELINE and row.budget is not None and row.reduction is not None and row.reduction - row.budget > 0.001:
        note.append(f"{100 * (row.reduction - row.budget):.2f} points over the budget")
    return (
        row.method,
        _number(row.top1, "{:.2f}"),
        _number(None if row.method == BASELINE else row.drop, "{:.2f}"),
        "" if row.drop_lo is None or row.method == BASELINE else f"{row.drop_lo:.2f} to {row.drop_hi:.2f}",
        _number(row.gflops, "{:.3f}"),
        _number(None if row.reduction is None else 100 * row.reduction, "{:.2f} %"),
        row.training,
        "; ".join(note),
    )


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """The short table for a terminal, controls dimmed."""
    from rich.table import Table
    from rich.text import Text

    title_text = Text(visible(title), style="table.title")  # a Text, unlike a string, has no markup and no emoji codes
    table = Table(title=title_text, title_justify="left", header_style="bold")
    for index, header in enumerate(TABLE_HEADERS):
        table.add_column(header, justify="left" if index in (0, 6, 7) else "right", overflow="fold")
    for row in rows:
        style = "bold" if row.method == BASELINE else "dim" if row.control else "red" if row.status != "ok" else ""
        table.add_row(*(Text(visible(text)) for text in display(row)), style=style)
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The short table in Markdown."""
    body = [map(for_markdown, display(row)) for row in rows]
    lines = [TABLE_HEADERS, ["---"] + ["---:"] * 5 + ["---"] * 2, *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex(rows: Sequence[Row]) -> str:
    """The short table as a LaTeX tabular."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(map(for_latex, cells)) + r" \\"

    lines = [r"\begin{tabular}{lrrrrrll}", r"\hline", line(TABLE_HEADERS), r"\hline"]
    return "\n".join([*lines, *(line(display(row)) for row in rows), r"\hline", r"\end{tabular}", ""])


def report(rows: Sequence[Row], title: str, run: Mapping[str, Any]) -> str:
    """One self-contained HTML page: the short table, all columns, and the run's configuration."""

    def escaped(text: str) -> str:
        return html.escape(visible(text))

    def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
        head = "".join(f"<th>{escaped(text)}</th>" for text in header)
        lines = ("".join(f"<td>{escaped(text)}</td>" for text in line) for line in body)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    short = table(TABLE_HEADERS, map(display, rows))
    full = table(COLUMNS, ([csv_cell(getattr(row, name)) for name in COLUMNS] for row in rows))
    style = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    style += "td,th{padding:.3em .7em;border-bottom:1px solid #ccc}th{text-align:left}"
    configuration = html.escape(json.dumps(run, indent=2))
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escaped(title)}</title><style>{style}</style>"
        f"<h1>{escaped(title)}</h1>{short}<h2>All columns</h2><div style='overflow-x:auto'>{full}</div>"
        f"<h2>Run</h2><pre>{configuration}</pre></html>\n"
    )


def check_writable(path: Path) -> None:
    """Make a folder and write into it, before hours of work depend on that.

    Raises:
        TokredError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process of the same run may have been faster
    except OSError as error:
        raise TokredError(f"The output folder {path} cannot be written ({error.strerror}); choose another with --out.") from error


class Folder:
    """The folder of one run. It belongs to one configuration; every file is written in one step.

    Raises:
        TokredError: the folder holds another configuration's run, or cannot be written.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any]) -> None:
        self.path = path
        check_writable(path)
        self._check_owner(configuration)

    def _check_owner(self, configuration: Mapping[str, Any]) -> None:
        run = self.path / "run.json"
        if not run.exists():
            foreign = [name for name in FILES if (self.path / name).exists()]
            if foreign:
                raise TokredError(f"{self.path} holds {foreign[0]} but no run of tokred (no run.json); choose another folder with --out.")
            return
        try:
            before = dict(json.loads(run.read_text(encoding="utf-8"))["configuration"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TokredError(f"{run} is not a run of tokred; choose another folder with --out.") from error
        changed = sorted(key for key in {*before, *configuration} if before.get(key) != configuration.get(key))
        if changed:
            raise TokredError(f"{self.path} holds a run with another {', '.join(changed)}; choose another folder with --out.")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file and swap it in, so that a reader sees the old one or the new one, never a part."""
        temporary = self.path / f".{name}.tmp"
        data = content.encode() if isinstance(content, str) else content
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self.path / name)
        except OSError as error:
            raise TokredError(f"Cannot write {self.path / name} ({error.strerror}); what was there before is unchanged.") from error

    def write_predictions(self, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
        self.write("predictions.npz", buffer.getvalue())
