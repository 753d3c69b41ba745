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
PUBLISHED = "published"  # training of rows whose weights come from elsewhere, trained with the reduction
TOLERANCE = 0.001  # of the dense model's FLOPs, by which a budget may be missed: 0.1 percentage points
SCHEMA = 5  # one more whenever a column is appended or comes to mean something else


@dataclass(frozen=True)
class Row:
    """One row of a leaderboard: one method at one budget.

    The field order is the column order of the CSV, and columns are only ever appended. None is an empty cell:
    not measured, or not applicable. Fractions are from 0 to 1, accuracies in per cent, drops in percentage
    points; FLOPs count one for each multiply-accumulate. `_lo` and `_hi` are the limits of the 95 % interval
    of the column that they follow in name; for differences from the baseline they are paired by image.

    Attributes:
        method: its name; "baseline" for the dense model.
        options: the method's options, "name=value" with spaces between.
        control: whether this is a control rather than a method.
        model: the backbone's name.
        dataset: the images' name.
        split: the part of them that was evaluated.
        n_images: the number of images that count.
        n_failed: the number of images that could not be read; see `on_error`.
        limited: whether these are the first images of the split only.
        budget: the fraction of FLOPs that was to be saved; None where the plan was set by its knob.
        reduction: the fraction of FLOPs that is saved.
        gflops: billions of FLOPs for an image, those of the reducers included.
        reducer_gflops: billions of FLOPs that the reducers cost.
        protocol: "native", "common" or "custom": how the stages were chosen.
        stages: the layers that reduce, with spaces between.
        tokens: the numbers of tokens after the stages, with spaces between.
        knob: the method's published parameter, as text.
        top1: accuracy; None without labels.
        top5: accuracy of the five most likely classes.
        drop: the baseline's top-1 minus this one.
        p_value: p-value of McNemar's test against the baseline.
        agreement: the fraction of images on which the prediction is the baseline's; it has limits without
            labels.
        kl: mean Kullback-Leibler divergence from the baseline's distribution, in nats.
        images_per_s: measured throughput.
        latency_ms: measured time of a batch.
        speedup: measured, over the dense model.
        promise_share: efficiency, which is `speedup` over the theoretical speed-up.
        peak_mem_mb: peak memory in MB.
        training: what was trained: "none", "reducer", "full" or "published".
        images_seen: the number of images it was trained on.
        weights: the weights' name.
        weights_hash: their hash.
        data_hash: the hash of images and labels.
        img_size: the side of the images in pixels.
        crop_pct: the fraction of the image's side that the crop keeps.
        interpolation: how images were resized.
        precision: the number format, such as "float32".
        device: the kind of device.
        batch_size: images in a batch.
        seed: the seed of all random choices.
        status: "ok", "failed", "unfitted" or "unreachable".
        error: why the status is not "ok".
        tokred, torch, timm, fvcore: versions.
        commit: the commit of tokred.
        date: the day of the run.
        adapter: the hash of the fitted parameters.
        unfitted: whether a learned method ran with random parameters.
        fitted_here: whether these images fitted or chose the parameters.
        schema: the version of these columns.
        on_error: "skip" where unreadable images are left out, "count-wrong" where they count as wrong.
        smallest_batch: the batch size to which memory forced some batches; None where `batch_size` fitted.
        published_top1: in the baseline's row, the accuracy on ImageNet-1K that timm publishes.
        baseline_off: whether the measured baseline differs from `published_top1`.
        unbeaten: controls that this method is not significantly better than, with spaces between.
        best: whether it is significantly better than every other method of its budget.
        nll: mean negative log-likelihood of the labels, in nats; None without labels.
        nll_rise: this nll minus the baseline's.
        gflops_lo, gflops_hi: limits of gflops where images have different counts; then this, `reduction` and
            `tokens` are means.
        gflops_sd: standard deviation of gflops over images.
        feature_cosine: mean cosine similarity of the pooled features to the baseline's; None with a
            classifier, as are the following.
        feature_error: mean relative error of the pooled features, the norm of the difference over the
            baseline's norm.
        patch_cosine: mean cosine similarity of the features of each patch, a dropped one having none.
        patch_error: mean relative error of the features of all patches of an image.
        knn_agreement: the fraction of an image's nearest neighbours that are those of the baseline.
        knn_top1: accuracy of the nearest neighbours' vote; None without labels.
        knn_drop: the baseline's knn_top1 minus this one.
        schedule: the name of the schedule of token counts; empty for a uniform one.
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
    nll: float | None = None
    nll_rise: float | None = None
    nll_rise_lo: float | None = None
    nll_rise_hi: float | None = None
    gflops_lo: float | None = None
    gflops_hi: float | None = None
    gflops_sd: float | None = None
    feature_cosine: float | None = None
    feature_cosine_lo: float | None = None
    feature_cosine_hi: float | None = None
    feature_error: float | None = None
    feature_error_lo: float | None = None
    feature_error_hi: float | None = None
    patch_cosine: float | None = None
    patch_cosine_lo: float | None = None
    patch_cosine_hi: float | None = None
    patch_error: float | None = None
    patch_error_lo: float | None = None
    patch_error_hi: float | None = None
    knn_agreement: float | None = None
    knn_agreement_lo: float | None = None
    knn_agreement_hi: float | None = None
    knn_top1: float | None = None
    knn_top1_lo: float | None = None
    knn_top1_hi: float | None = None
    knn_drop: float | None = None
    knn_drop_lo: float | None = None
    knn_drop_hi: float | None = None
    schedule: str = ""

    @property
    def gap(self) -> float:
        """The fraction of FLOPs saved beyond the budget; 0 within `TOLERANCE` and without a budget."""
        gap = 0.0 if self.budget is None or self.reduction is None else self.reduction - self.budget
        return gap if abs(gap) > TOLERANCE else 0.0

    @property
    def score(self) -> float | None:
        """What rows are ordered by: top-1, else agreement, else the cosine of the features."""
        scores = (self.top1, self.agreement, self.feature_cosine)
        return next((score for score in scores if score is not None), None)


COLUMNS = tuple(field.name for field in fields(Row))
MEASURES = COLUMNS[COLUMNS.index("feature_cosine") : COLUMNS.index("knn_drop_hi") : 3]
"""The columns of models without a classifier; each has limits."""
_FIRST_COLUMNS = COLUMNS.index("date") + 1  # how many the first leaderboards had


def outcome_name(names: Iterable[str], row: Row) -> str | None:
    """The name of a row's predictions among those of a run; None if they are not there.

    It is the method, with the budget or the knob where there are several. A CSV has 12 digits of either.
    """
    here = {_rounded(name): name for name in names}
    wanted = [row.method]  # alone for the baseline, and for controls that have no budget
    if row.budget is not None:
        wanted.append(f"{row.method}@{row.budget:.12g}")
    elif row.knob:
        named = [f"{row.method}@{row.knob}@{row.stages}", f"{row.method}@{row.knob}"]
        wanted = wanted if row.schedule else named
    return next((here[name] for name in wanted if name in here), None)


def _rounded(name: str) -> str:
    """A name whose budget has the digits that the CSV has."""
    method, at, budget = name.partition("@")
    try:
        return f"{method}@{float(budget):.12g}" if at else name
    except ValueError:
        return name


def rank(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order of tables: the baseline, then the methods from the most accurate on.

    Without labels agreement counts, without a classifier the cosine of the features. Ties go by FLOPs, then
    by name. Rows that failed are last.
    """

    def key(row: Row) -> tuple[Any, ...]:
        return (
            row.method != BASELINE,
            row.status != "ok",
            -(row.score or 0),
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


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with all columns: raw numbers to 12 digits, empty cells for what was not measured."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([csv_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
    return text.getvalue()


def csv_cell(value: Any) -> str:
    r"""A value as CSV holds it.

    Lines end in \n alone, and what is no text (half a surrogate pair, NUL) is written as Python writes it.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    text = str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\\x00")
    return text.encode(errors="backslashreplace").decode()


def from_csv(text: str, name: str = "This file") -> list[Row]:
    """The rows of a leaderboard, which `to_csv` has written.

    Columns that an older tokred did not have yet are at their defaults.

    Args:
        text: the CSV.
        name: the file's name, for messages.

    Raises:
        TokredError: this is no leaderboard, is a newer tokred's, or has a cell of the wrong type.
    """
    try:
        lines = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True))
    except (csv.Error, ValueError) as error:
        raise TokredError(f"{name} is no leaderboard of tokred, or damaged ({error}).") from error
    if not lines:
        raise TokredError(f"{name} is empty; a leaderboard of tokred has at least a header.")
    header = lines[0]
    _check_header(header, name)
    body = [cells for cells in lines[1:] if cells]  # an editor may leave an empty line at the end
    return [_row(header, cells, number, name) for number, cells in enumerate(body, start=1)]


def _check_header(header: Sequence[str], name: str) -> None:
    if tuple(header[: len(COLUMNS)]) == COLUMNS and len(header) > len(COLUMNS):
        raise TokredError(
            f"{name} was written by a newer tokred: this one does not know its column "
            f"{visible(header[len(COLUMNS)])!r}; update tokred."
        )
    odd = next((column for column, own in zip(header, COLUMNS, strict=False) if column != own), None)
    if odd is not None or len(header) < _FIRST_COLUMNS:
        reason = "columns are missing" if odd is None else f"column {visible(odd)!r} is not tokred's"
        raise TokredError(f"{name} is no leaderboard of tokred: {reason}.")


_SCHEMAS = frozenset(("", *map(str, range(1, SCHEMA + 1))))


def _row(header: Sequence[str], cells: Sequence[str], number: int, name: str) -> Row:
    if len(cells) != len(header):
        raise TokredError(
            f"{name} is damaged: its row {number} has {len(cells)} cells for {len(header)} columns."
        )
    values = dict(zip(header, cells, strict=True))
    if values.get("schema", "") not in _SCHEMAS:
        raise TokredError(
            f"{name} has a row of schema {visible(values['schema'])!r}, and this tokred knows those up to "
            f"{SCHEMA}; update tokred."
        )
    values.setdefault("schema", "")
    return Row(**{column: _typed(column, cell, name) for column, cell in values.items()})


_TYPES: dict[str, str] = {field.name: str(field.type) for field in fields(Row)}


def _typed(column: str, cell: str, name: str) -> Any:
    """The value of a cell, by the type of its column."""
    kind = _TYPES[column]
    if kind == "str":
        return cell
    if cell == "":  # not measured, or a column that is newer than the row
        return {"bool": False, "int": 1}.get(kind)
    try:
        if kind == "bool":
            return {"true": True, "false": False}[cell]
        return (int if "int" in kind else float)(cell)
    except (KeyError, ValueError):
        wanted = {"bool": "true or false", "float | None": "a number"}.get(kind, "a whole number")
        raise TokredError(
            f"{name} is damaged: its column {column} holds {visible(cell)!r}, expected {wanted}."
        ) from None
