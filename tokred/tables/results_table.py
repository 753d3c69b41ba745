"""The results table: what people read of a run's rows in the terminal, in Markdown, LaTeX and the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from tokred.tables.render import Table
from tokred.tables.row import BASELINE, COLUMNS, PUBLISHED, Row, to_csv

if TYPE_CHECKING:
    from rich.console import RenderableType

_ACCURACY = ("Top-1", "Drop [95 % interval]")
_RISE = "NLL rise"
_AGREEMENT = ("Agreement [95 % interval]", "KL")
_FEATURES = ("Cosine [95 % interval]", "Error", "Patch cosine", "Patch error", "k-NN agreement")
_KNN = ("k-NN top-1", "k-NN drop [95 % interval]")
_COST, _REDUCTION, _SPEEDUP = "GFLOPs", "Reduction", "Speed-up"
Measure = Literal["accuracy", "agreement", "features"]
MEASURED: dict[Measure, str] = {
    "accuracy": "Top-1 (%)",
    "agreement": "Agreement (%)",
    "features": "Cosine of features",
}
_TRAINED = {"reducer": "own parameters trained", "full": "all weights trained"}


def results_table(rows: Sequence[Row], title: str = "", defaults: Mapping[str, str] | None = None) -> Table:
    """The results table of a run.

    Args:
        rows: the run's rows, in the order of the table.
        title: one line for the terminal.
        defaults: the default options by method, as `Row.options` has them. Options that differ are noted;
            without `defaults` none are.
    """
    names = headers(rows)
    return Table(
        title=title,
        headers=names,
        rows=[[cells(row)[name] for name in names] for row in rows],
        bold=frozenset((place, 1) for place, row in enumerate(rows) if row.best),
        styles=[_style(row) for row in rows],
        notes=run_notes(rows),
        row_notes={place: row_notes(row, rows, defaults or {}) for place, row in enumerate(rows)},
        titled=bool(title),
    )


def headers(rows: Sequence[Row]) -> tuple[str, ...]:
    """The column names: what was measured of accuracy, or without labels agreement, or features.

    At one budget there is no reduction: the title has the budget, and a note says where a row misses it.
    """
    rise = (_RISE,) if any(row.nll_rise is not None for row in rows) else ()
    timed = (_SPEEDUP,) if any(row.speedup is not None for row in rows) else ()
    budgets = {row.budget for row in rows if row.method != BASELINE and not row.control}
    saved = () if len(budgets) == 1 and None not in budgets else (_REDUCTION,)
    scores = {"accuracy": _ACCURACY + rise, "agreement": _AGREEMENT, "features": _FEATURES}[measure(rows)]
    knn = _KNN if any(row.knn_top1 is not None for row in rows) else ()
    return ("Method", *scores, *knn, _COST, *saved, *timed)


def cells(row: Row) -> dict[str, str]:
    """The cells of a row, by the names of the columns."""
    if row.method == BASELINE:  # what compares it with itself is left out
        row = replace(row, drop=None, nll_rise=None, speedup=None, knn_drop=None)
    agreement, low, high = [
        None if value is None else 100 * value
        for value in (row.agreement, row.agreement_lo, row.agreement_hi)
    ]
    texts = (
        row.method,
        *(_number(row.top1, "{:.2f}"), _between(row.drop, row.drop_lo, row.drop_hi), _rise(row)),
        *(_between(agreement, low, high), _number(row.kl, "{:.4f}")),
        _between(row.feature_cosine, row.feature_cosine_lo, row.feature_cosine_hi, "{:.4f}"),
        *(_number(value, "{:.3f}") for value in (row.feature_error, row.patch_cosine, row.patch_error)),
        *(_number(row.knn_agreement, "{:.3f}"), _number(row.knn_top1, "{:.2f}")),
        _between(row.knn_drop, row.knn_drop_lo, row.knn_drop_hi),
        _number(row.gflops, "{:.3f}"),
        _number(None if row.reduction is None else 100 * row.reduction, "{:.2f} %"),
        _number(row.speedup, "{:.2f}"),
    )
    names = ("Method", *_ACCURACY, _RISE, *_AGREEMENT, *_FEATURES, *_KNN, _COST, _REDUCTION, _SPEEDUP)
    return dict(zip(names, texts, strict=True))


def run_notes(rows: Sequence[Row]) -> list[str]:
    """What holds for all rows of a run, in one sentence."""
    row = next((row for row in rows if row.n_images is not None), None)
    if row is None:
        return []
    protocols = {other.protocol for other in rows if other.protocol}
    protocol = f"{protocols.pop()} stages" if len(protocols) == 1 else ""
    schedules = {other.schedule for other in rows if other.schedule}
    schedule = f"{schedules.pop()} schedule" if len(schedules) == 1 else ""
    pixels = f"{row.img_size} pixels" if row.img_size else ""
    text = ", ".join(filter(None, (*_shared(rows), row.precision, pixels, protocol, schedule)))
    return [f"{text[:1].upper()}{text[1:]}."]


def row_notes(row: Row, rows: Sequence[Row] = (), defaults: Mapping[str, str] | None = None) -> list[str]:
    """What a reader has to know of one row beside its cells.

    Args:
        row: the row.
        rows: all rows of its run; what `run_notes` says of all of them is left out.
        defaults: the default options by method.
    """
    notes = ["control"] if row.control else []
    if defaults is not None and row.options and row.options != defaults.get(row.method):
        usual = defaults.get(row.method, "").split(" ")
        notes.append(f"with {' '.join(option for option in row.options.split(' ') if option not in usual)}")
    if row.unbeaten:
        notes.append(f"not significantly better than {', '.join(row.unbeaten.split())}")
    if row.published_top1 is not None and row.top1 is not None:
        off = f", off by {row.top1 - row.published_top1:+.3f}: check images and preparation"
        notes.append(f"published: {row.published_top1:.3f}{off if row.baseline_off else ''}")
    elif row.baseline_off:
        notes.append("baseline off")
    if row.unfitted:
        notes.append("unfitted: random parameters, no result")
    if row.training in _TRAINED and not row.unfitted:
        notes.append(_TRAINED[row.training])
    if row.training == PUBLISHED:
        notes.append("published checkpoint, which its authors chose by validation accuracy")
    if row.fitted_here:
        notes.append("fitted on or chosen by these images")
    notes += [
        fact for fact in _facts(row) if fact not in _shared(rows) and (row.limited or fact != _images(row))
    ]
    if row.status != "ok":
        notes.append(row.error if row.status == "unfitted" else f"{row.status}: {row.error}")
    elif row.gap:
        notes.append(f"saves {100 * abs(row.gap):.2f} points {'more' if row.gap > 0 else 'less'} than asked")
    elif row.control and row.budget is None and row.reduction is not None:
        notes.append(f"saves {100 * row.reduction:.2f} %")
    if row.gflops_sd and row.gflops:
        notes.append(f"FLOPs of images vary by {100 * row.gflops_sd / row.gflops:.1f} %")
    return notes


def sweep_table(rows: Sequence[Row], title: str = "") -> Table:
    """Accuracy, agreement or similarity by method and budget; a dash where a method cannot reach a budget."""
    budgets, lines = by_budget(rows)
    firsts = [next(iter(line.values())) for line in lines.values()]
    return Table(
        title=title,
        headers=(
            f"{MEASURED[measure(rows)]} at a reduction of",
            *(f"{100 * budget:.12g} %" for budget in budgets),
        ),
        rows=[[method, *(_score(line.get(budget)) for budget in budgets)] for method, line in lines.items()],
        bold=frozenset(
            (place, column)
            for place, line in enumerate(lines.values())
            for column, budget in enumerate(budgets, start=1)
            if budget in line and line[budget].best
        ),
        styles=["" if _style(row) == "red" else _style(row) for row in firsts],
        notes=run_notes(rows),
    )


def by_budget(rows: Iterable[Row]) -> tuple[list[float], dict[str, dict[float, Row]]]:
    """The budgets of a sweep, and each method's row at each of them; plans at a knob are left out."""
    rows = list(rows)
    budgets = sorted({row.budget for row in rows if row.budget is not None})
    lines: dict[str, dict[float, Row]] = {}
    for row in rows:
        if row.budget is not None:
            lines.setdefault(row.method, {})[row.budget] = row
        elif not row.knob:  # the baseline and the smaller model are the same at all budgets
            lines.setdefault(row.method, {}).update(dict.fromkeys(budgets, row))
    return budgets, {method: line for method, line in lines.items() if line}


def aside(row: Row) -> str:
    """What has to stand beside a row's accuracy where there is no room for notes."""
    parts = [f"at {100 * (row.reduction or 0):.1f} %"] if row.gap else []
    parts += ["random parameters"] if row.unfitted else []
    parts += ["fitted here"] if row.fitted_here else []
    return f" ({', '.join(parts)})" if parts else ""


def formatted(
    rows: Sequence[Row],
    title: str,
    form: str,
    swept: bool = False,
    defaults: Mapping[str, str] | None = None,
) -> str | RenderableType:
    """The rows in one of `render.FORMATS`: CSV and JSON have all columns and raw numbers."""
    if form == "csv":
        return to_csv(rows)
    if form == "json":
        return json.dumps([{name: getattr(row, name) for name in COLUMNS} for row in rows], indent=2) + "\n"
    table = sweep_table(rows, title) if swept else results_table(rows, title, defaults)
    return table.render(form)


def _style(row: Row) -> str:
    if row.method == BASELINE:
        return "bold"
    if row.control:
        return "dim"
    return "red" if row.status != "ok" else ""


def _rise(row: Row) -> str:
    """The rise of NLL with the distance to the farther limit of its interval."""
    rise, low, high = row.nll_rise, row.nll_rise_lo, row.nll_rise_hi
    if rise is None:
        return ""
    width = "" if low is None or high is None else f" ±{max(rise - low, high - rise):.3f}"
    return f"{rise:+.3f}{width}"


def _between(value: float | None, low: float | None, high: float | None, pattern: str = "{:.2f}") -> str:
    """A value with the limits of its interval."""
    limits = "" if low is None or high is None else f" [{pattern.format(low)}, {pattern.format(high)}]"
    return "" if value is None else f"{pattern.format(value)}{limits}"


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)


def measure(rows: Sequence[Row]) -> Measure:
    """What rows are ordered by: accuracy, without labels agreement, without a classifier features."""
    if any(row.feature_cosine is not None for row in rows):
        return "features"
    measured = [row for row in rows if row.top1 is not None or row.agreement is not None]
    return "agreement" if measured and all(row.top1 is None for row in measured) else "accuracy"


def _score(row: Row | None) -> str:
    """A row's accuracy, agreement or similarity in the table of a sweep."""
    if row is None or row.score is None:
        return "-"
    if row.feature_cosine is not None:
        return f"{row.feature_cosine:.4f}{aside(row)}"
    return f"{row.score if row.top1 is not None else 100 * row.score:.2f}{aside(row)}"


def _shared(rows: Sequence[Row]) -> list[str]:
    """The facts about images and batches that hold for all rows."""
    facts = [_facts(row) for row in rows if row.n_images is not None]
    return [fact for fact in facts[0] if all(fact in other for other in facts)] if facts else []


def _facts(row: Row) -> list[str]:
    """What a row says of its images and batches."""
    facts = [_images(row)] if row.n_images is not None else []
    if row.n_failed:
        count = "1 image" if row.n_failed == 1 else f"{row.n_failed} images"
        facts.append(f"{count} unreadable, {'left out' if row.on_error == 'skip' else 'counted as wrong'}")
    if row.smallest_batch:
        facts.append(f"batches of {row.smallest_batch} for lack of memory")
    return facts


def _images(row: Row) -> str:
    count = f"{row.n_images:,} image{'' if row.n_images == 1 else 's'}"
    if row.limited:
        return "first image only" if row.n_images == 1 else f"first {count} only"
    return count
