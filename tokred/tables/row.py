"""Rows of a comparison, their order, and CSV that can be read again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tokred.errors import TokredError
from tokred.utils.text import visible

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "baseline"
PUBLISHED = (
    "published"  # training of rows whose weights somebody else has trained with the reduction in place
)
TOLERANCE = 0.001  # of the unreduced model's FLOPs, by which a budget may be missed: 0.1 percentage points
SCHEMA = 2  # one more whenever a column is appended or comes to mean something else


@dataclass
class Row:
    """One line of a leaderboard; the field order is the column order, and columns are only ever appended.

    Budget, reduction, agreement and promise_share are fractions; top1, top5, drop and their limits are per cent; gflops count one
    multiply-accumulate as one; stages and tokens are space-separated. None is "not measured" and an empty cell. `adapter` is the hash
    of the fitted parameters, `unfitted` says that a learned method ran with random ones, `fitted_here` that
    these images fitted or chose them. `schema` is the version of these columns; rows from before it have none. `n_failed` counts
    images that could not be read; `on_error` says whether they were left out ("skip") or counted as wrong. `smallest_batch` is there
    where memory did not suffice for `batch_size` images. `published_top1` is what timm publishes of these weights on ImageNet-1K, in
    the baseline's row; `baseline_off` says that the baseline measured here is not that. `unbeaten` has the controls, space-separated,
    that this method is not shown to beat; `best` says that it is shown to beat every other method of its table. Without labels
    accuracies and drop are empty, and agreement has limits of its own, fractions like itself.
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
    on_error: str = ""
    smallest_batch: int | None = None
    published_top1: float | None = None
    baseline_off: bool = False
    unbeaten: str = ""
    best: bool = False
    agreement_lo: float | None = None
    agreement_hi: float | None = None

    @property
    def gap(self) -> float:
        """How much more than its budget it saves, a fraction; 0 within the tolerance, and where there is no budget."""
        gap = 0.0 if self.budget is None or self.reduction is None else self.reduction - self.budget
        return gap if abs(gap) > TOLERANCE else 0.0


COLUMNS = tuple(field.name for field in fields(Row))


def outcome_name(
    arrays: Iterable[str], method: str, budget: float | None, knob: str, stages: str
) -> str | None:
    """What the outcomes of a row are called in predictions.npz, among the names of its arrays; None where they are not there.

    That is the method, with the budget or the knob where there are several; CSV has 12 digits of either.
    """
    here = {
        _rounded(name): name
        for name in (key.removesuffix(_PREDICTION) for key in arrays if key.endswith(_PREDICTION))
    }
    if budget is not None:
        wanted = [method, f"{method}@{budget:.12g}"]
    elif knob:
        wanted = [f"{method}@{knob}@{stages}", f"{method}@{knob}"]
    else:
        wanted = [method]  # the unreduced model, and controls that have no budget
    return next((here[name] for name in wanted if name in here), None)


_PREDICTION = "/prediction"


def _rounded(name: str) -> str:
    """A name whose budget has the digits that the CSV has."""
    method, at, budget = name.partition("@")
    try:
        return f"{method}@{float(budget):.12g}" if at else name
    except ValueError:
        return name


def rank(rows: Iterable[Row]) -> list[Row]:
    """The baseline first, then methods by accuracy, without labels by agreement, then by FLOPs, then by name; failed ones last."""

    def key(row: Row) -> tuple[Any, ...]:
        good = row.agreement if row.top1 is None else row.top1
        return (
            row.method != BASELINE,
            row.status != "ok",
            -(good or 0),
            row.gflops or 0,
            row.method,
            row.budget or 0,
        )

    return sorted(rows, key=key)


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a data frame with all columns; what was not measured is None."""
    import pandas as pd

    return pd.DataFrame(
        [[getattr(row, name) for name in COLUMNS] for row in rows], columns=list(COLUMNS), dtype=object
    )


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
    return (
        str(value)
        .replace("\r\n", "\n")
        .replace("\r", "\n")
        .replace("\0", "\\x00")
        .encode(errors="backslashreplace")
        .decode()
    )


def read(text: str) -> list[Row]:
    """The rows of a leaderboard in CSV, each value of its column's type again: what `csv_text` has written comes back, to 12 digits.

    Columns that an older tokred did not have yet are at their defaults.

    Raises:
        TokredError: this is no leaderboard, or a cell is not what its column holds.
    """
    try:
        header, *body = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells]
    except (csv.Error, ValueError) as error:
        raise TokredError(
            f"This is no leaderboard of tokred ({error}); expected CSV with its columns."
        ) from error
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or "method" not in header:
        what = f"it has a column {visible(unknown[0])!r}" if unknown else "it has no column 'method'"
        raise TokredError(
            f"This is no leaderboard of tokred: {what}; expected {COLUMNS[0]}, {COLUMNS[1]} and so on."
        )
    for number, cells in enumerate(body, start=1):
        if len(cells) != len(header):
            raise TokredError(
                f"This leaderboard is damaged: its row {number} has {len(cells)} cells for {len(header)} columns."
            )
    return [
        Row(**{name: _typed(name, cell) for name, cell in zip(header, cells, strict=True)}) for cells in body
    ]


_KINDS: dict[str, str] = {field.name: str(field.type) for field in fields(Row)}


def _typed(name: str, cell: str) -> Any:
    """The value of a cell, by the type of its column."""
    kind = _KINDS[name]
    if kind == "str":
        return cell
    if cell == "":  # "not measured", or a column that is newer than the row
        return {"bool": False, "int": 1}.get(kind)
    try:
        return (
            {"true": True, "false": False}[cell]
            if kind == "bool"
            else (int if "int" in kind else float)(cell)
        )
    except (KeyError, ValueError):
        wanted = "true or false" if kind == "bool" else "a whole number" if "int" in kind else "a number"
        raise TokredError(
            f"This leaderboard is damaged: its column {name} holds {visible(cell)!r}, expected {wanted}."
        ) from None
