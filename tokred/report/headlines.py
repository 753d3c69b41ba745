"""The text of the page: the result in a sentence, warnings, key figures and provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokred.evaluation.significance import competes
from tokred.report.main_table import signed
from tokred.report.run_data import RunData, setting
from tokred.tables.results_table import measure
from tokred.tables.row import BASELINE, Row

_NO_RESULT = {"failed": "failed", "unfitted": "not fitted yet", "unreachable": "cannot meet the budget"}


def measured(data: RunData) -> list[Row]:
    """Rows that compete for the best result; if there are none, the rows of all fitted methods."""
    others = [row for row in data.rows if row.method != BASELINE and not row.control and not row.unfitted]
    usable = [row for row in others if row.status == "ok" and row.score is not None]
    return list(filter(competes, usable)) or usable


def summary(data: RunData) -> str:
    """The result in one sentence."""
    rows, budgets, base = measured(data), data.budgets, data.baseline
    if not rows:
        return "No method has a result here; the table says why."
    if len(budgets) > 1:
        ends = [[row for row in rows if row.budget == budget] for budget in (budgets[0], budgets[-1])]
        text = "; ".join(map(_least, filter(None, ends)))
        return f"{text[:1].upper()}{text[1:]}."
    first = next((row for row in rows if row.best), None)
    best = [first] if first else _best(rows)
    start = f"At {_spent(budgets[0])}" if budgets else "With plans set by hand"
    if best[0].feature_cosine is not None:
        are = "is" if len(best) == 1 else "are"
        what = f"{are} closest to the dense model, {_share(best[0])}"
        return f"{start}, {_names(best)} {what}."
    if best[0].top1 is None:
        verb = "agrees" if len(best) == 1 else "agree"
        what = f"{verb} with the dense model on {_share(best[0])} of the images"
        return f"{start}, {_names(best)} {what}."
    whole = f", against {base.top1:.2f} % for the dense model" if base and base.top1 is not None else ""
    better = "significantly better than"
    end = f"it is {better} every other method" if first else f"no method is {better} all others"
    has = f"{_names(best)} {'has' if len(best) == 1 else 'have'} {best[0].top1:.2f} % top-1{whole}"
    return f"{start}, {has}: {_loss(best)}{f'; {end}' if len(rows) > 1 else ''}."


def _least(rows: Sequence[Row]) -> str:
    """The best rows of one budget, in words."""
    best, verb = _best(rows), "loses" if len(_best(rows)) == 1 else "lose"
    return f"at {_spent(rows[0].budget or 0)} {_names(best)} {verb} least, {_loss(best)}"


def _best(rows: Sequence[Row]) -> list[Row]:
    """The rows with the highest accuracy or agreement; several if it is equal."""
    most = max(row.score or 0.0 for row in rows)
    return [row for row in rows if (row.score or 0.0) == most]


def _names(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.method for row in rows))
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _spent(budget: float) -> str:
    return f"{100 * budget:.12g} % fewer FLOPs"


def _share(row: Row) -> str:
    if row.feature_cosine is not None:
        return f"a cosine of features of {row.feature_cosine:.4f}"
    return "" if row.agreement is None else f"{100 * row.agreement:.2f} %"


def _loss(rows: Sequence[Row]) -> str:
    """The drop of rows with the same accuracy, with its interval for a single row."""
    row = rows[0]
    if row.drop is None:
        return _share(row) if row.agreement is None else f"agreement {_share(row)}"
    one = len(rows) == 1 and row.drop_lo is not None
    interval = f" (95 % interval {signed(row.drop_lo)} to {signed(row.drop_hi)})" if one else ""
    return f"a drop of {signed(row.drop)} points{interval}"


def figures(data: RunData) -> list[tuple[str, str, str]]:
    """Three or four key figures: a label, its value, and a note with its unit and method."""
    rows, base, shown = measured(data), data.baseline, []
    if base and base.top1 is not None:
        shown.append(("Dense model", f"{base.top1:.2f} %", f"top-1 at {base.gflops or 0:.3f} GFLOPs"))
    elif base and base.gflops is not None:
        encodes = any(row.feature_cosine is not None for row in rows)
        lack = "the model has no classifier" if encodes else "these images have no labels"
        shown.append(("Dense model", f"{base.gflops:.3f}", f"GFLOPs; {lack}"))
    if (least := _most(rows, lambda row: None if row.drop is None else -row.drop)) is not None:
        shown.append(("Smallest drop", signed(least.drop), f"points, {_called(data, least)}"))
    if (alike := _most(rows, lambda row: row.agreement)) is not None:
        note = f"of predictions agree, {_called(data, alike)}"
        shown.append(("Closest to the dense model", _share(alike), note))
    if (near := _most(rows, lambda row: row.feature_cosine)) is not None:
        note = f"cosine of features, {_called(data, near)}"
        shown.append(("Closest to the dense model", f"{near.feature_cosine:.4f}", note))
    if (fast := _most(rows, lambda row: row.speedup)) is not None:
        shown.append(("Fastest", f"{fast.speedup:.2f} ×", f"measured, {_called(data, fast)}"))
    return shown


def _most(rows: Sequence[Row], value: Callable[[Row], float | None]) -> Row | None:
    """The first row with the highest value; None if no row has a value."""
    known = (row for row in rows if value(row) is not None)
    return max(known, key=lambda row: value(row) or 0.0, default=None)


def _called(data: RunData, row: Row) -> str:
    return row.method if len(data.budgets) < 2 else f"{row.method} at {setting(row)}"


def warnings(data: RunData) -> list[str]:
    """Warnings about the images and the methods."""
    texts = [*_image_warnings(data), *_row_warnings(data)]
    if data.about.get("smallest_batch"):
        texts.append(f"For lack of memory batches had {data.about['smallest_batch']} images.")
    if data.about.get("kinds"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in data.about["kinds"].items())
        texts.append(f"Files that are not plain 8-bit colour: {kinds}.")
    return texts


def _image_warnings(data: RunData) -> list[str]:
    """Warnings about the images and the baseline."""
    base, notes, texts = data.baseline, data.about.get("notes"), []
    first = base or (data.rows[0] if data.rows else Row(""))
    if first.limited:
        why = "the ranking may differ on all images"
        texts.append(f"Only the first {first.n_images} images were evaluated; {why}.")
    if base and base.baseline_off:
        published = f"{_percent(base.published_top1)} is published for these weights"
        advice = "check the data, its preparation and the weights before reading on"
        texts.append(f"The dense model has {_percent(base.top1)} here, and {published}; {advice}.")
    if base and base.top1 is None and measure(data.rows) == "agreement":
        texts.append("These images have no labels: agreement with the dense model stands in for accuracy.")
    elif isinstance(notes, list):
        texts += map(str, notes)
    if first.n_failed:
        how = "left out" if first.on_error == "skip" else "counted as wrong for every model"
        what = "1 image could not be read and is"
        if first.n_failed > 1:
            what = f"{first.n_failed:,} images could not be read and are"
        texts.append(f"{what} {how}.")
    return texts


def _row_warnings(data: RunData) -> list[str]:
    """Warnings about methods."""
    texts, done = [], [row for row in data.rows if row.status == "ok"]
    for status, what in _NO_RESULT.items():
        names = dict.fromkeys(data.called(row) for row in data.rows if row.status == status)
        if names:
            texts.append(f"No result, {what}: {', '.join(names)}. The notes below the table say why.")
    for attribute, what in (
        ("unfitted", "Random parameters, no result"),
        ("fitted_here", "Fitted on or chosen by these very images"),
    ):
        names = dict.fromkeys(row.method for row in done if getattr(row, attribute))
        if names:
            texts.append(f"{what}: {', '.join(names)}.")
    for controls in dict.fromkeys(row.unbeaten for row in done if row.unbeaten):
        names = dict.fromkeys(data.called(row) for row in done if row.unbeaten == controls)
        texts.append(f"Not significantly better than {', '.join(controls.split())}: {'; '.join(names)}.")
    return texts


def _percent(value: float | None) -> str:
    return "no top-1" if value is None else f"{value:.2f} % top-1"


def provenance(data: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts about the run: headings with pairs of name and value; unknown values are left out."""
    run, row = data.about, data.baseline or (data.rows[0] if data.rows else Row(""))
    configuration, software, card = run["configuration"], run.get("software", {}), run.get("card") or {}
    images = card.get("images_seen")
    prepared = f"{row.img_size} px, crop {_text(row.crop_pct)}, {row.interpolation}"
    groups = {
        "Model": [
            ("Model", row.model),
            ("Weights", row.weights),
            ("SHA-256", row.weights_hash),
            ("Published", _text(run.get("reference"))),
            ("Trained on", f"{images:,} images" if isinstance(images, int) else ""),
            ("Made by", _text(card.get("command"))),
            ("Note", _text(card.get("note"))),
        ],
        "Images": [
            ("Data", " ".join(filter(None, (row.dataset, row.split)))),
            ("Images", _text(row.n_images)),
            ("SHA-256", row.data_hash),
            ("Prepared", prepared if row.img_size else ""),
            ("Unreadable", _text(row.n_failed or None)),
        ],
        "Run": [
            ("Command", _text(run.get("command"))),
            ("Date", row.date),
            ("Took", _took(run)),
            ("Device", row.device),
            ("Precision", row.precision),
            ("Images in a batch", _text(row.batch_size)),
            ("Seed", _text(row.seed)),
            ("Layers", _text(configuration.get("stages") or configuration.get("protocol"))),
            ("Schedule", _text((configuration.get("schedule") or {}).get("name"))),
        ],
        "Software": [
            *((name, str(getattr(row, name))) for name in ("tokred", "commit", "torch", "timm", "fvcore")),
            *((name, _text(software.get(name))) for name in ("numpy", "pillow")),
            ("Code, SHA-256", _text(software.get("code"))),
        ],
    }
    return [(heading, [(name, text) for name, text in pairs if text]) for heading, pairs in groups.items()]


def fitted(data: RunData) -> list[tuple[str, str, str, str]]:
    """The adapters: method, file, number of training images and hash."""
    cards, hashes = data.about.get("adapters") or {}, data.about["configuration"].get("adapters") or {}
    return [
        (name, _text(card.get("file")), _text(card.get("images_seen")), _text(hashes.get(name)))
        for name, card in cards.items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _took(run: Mapping[str, Any]) -> str:
    seconds = run.get("seconds")
    if not isinstance(seconds, (int, float)):
        return ""
    more = [f"{run[name]} {name}" for name in ("processes", "threads") if (run.get(name) or 1) > 1]
    return f"{seconds:,.0f} s" + (f" with {' and '.join(more)}" if more else "")
