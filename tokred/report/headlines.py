"""What the page says in words: the result in a sentence, what a reader must know before believing it, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokred.evaluation.significance import competes
from tokred.report.main_table import signed
from tokred.report.run_data import Material, setting
from tokred.tables.row import BASELINE, Row


@dataclass(frozen=True)
class Figure:
    """A key figure: what it is, its value, and whose it is or how sure."""

    label: str
    value: str
    note: str


def measured(material: Material) -> list[Row]:
    """Rows with a result that may be called the best; where there are none, those of any method with its parameters."""
    usable = [
        row
        for row in material.rows
        if row.status == "ok" and row.method != BASELINE and not row.control and not row.unfitted
    ]
    usable = [row for row in usable if _worth(row) is not None]
    return list(filter(competes, usable)) or usable


def summary(material: Material) -> str:
    """The result in one sentence."""
    rows, budgets, base = measured(material), material.budgets, material.baseline
    if not rows:
        return "No method has a result here; the table says why."
    if len(budgets) > 1:
        text = "; ".join(
            _least(rows, budget)
            for budget in (budgets[0], budgets[-1])
            if any(row.budget == budget for row in rows)
        )
        return f"{text[:1].upper()}{text[1:]}."
    first = next((row for row in rows if row.best), None)
    best = [first] if first else _best(rows)
    start = f"At {_spent(budgets[0])}" if budgets else "At the plans given"
    if best[0].top1 is None:
        what = f"{'answers' if len(best) == 1 else 'answer'} as the unreduced model does on {_share(best[0])} of the images"
        return f"{start}, {_names(best)} {what}."
    whole = f", against {base.top1:.2f} % unreduced" if base and base.top1 is not None else ""
    end = "it is shown to beat every other method" if first else "no method is shown to beat all others"
    has = f"{_names(best)} {'has' if len(best) == 1 else 'have'} {best[0].top1:.2f} % top-1{whole}"
    return f"{start}, {has}: {_loss(best)}{f'; {end}' if len(rows) > 1 else ''}."


def _least(rows: Sequence[Row], budget: float) -> str:
    best = _best([row for row in rows if row.budget == budget])
    return f"at {_spent(budget)} {_names(best)} {'loses' if len(best) == 1 else 'lose'} least, {_loss(best)}"


def _best(rows: Sequence[Row]) -> list[Row]:
    """The rows with the highest accuracy, or agreement: several where it is the same."""
    most = max(_worth(row) or 0.0 for row in rows)
    return [row for row in rows if (_worth(row) or 0.0) == most]


def _names(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.method for row in rows))
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _spent(budget: float) -> str:
    return f"{100 * budget:.12g} % fewer FLOPs"


def _worth(row: Row) -> float | None:
    return row.agreement if row.top1 is None else row.top1


def _share(row: Row) -> str:
    return "" if row.agreement is None else f"{100 * row.agreement:.2f} %"


def _loss(rows: Sequence[Row]) -> str:
    """What rows of the same accuracy lose; with the interval if it is one."""
    row = rows[0]
    if row.drop is None:
        return f"agreement {_share(row)}"
    one = len(rows) == 1 and row.drop_lo is not None
    return f"a drop of {signed(row.drop)} points{f' ({signed(row.drop_lo)} to {signed(row.drop_hi)} with 95 % confidence)' if one else ''}"


def figures(material: Material) -> list[Figure]:
    """Three or four key figures."""
    rows, base, found = measured(material), material.baseline, []
    if base and base.top1 is not None:
        found.append(
            Figure("Unreduced model", f"{base.top1:.2f} %", f"top-1 at {base.gflops or 0:.3f} G FLOPs")
        )
    elif base and base.gflops is not None:
        found.append(Figure("Unreduced model", f"{base.gflops:.3f} G", "FLOPs; these images have no labels"))
    for least in [
        min((row for row in rows if row.drop is not None), key=lambda row: row.drop or 0.0, default=None)
    ]:
        if least is not None:
            found.append(Figure("Smallest drop", signed(least.drop), f"points, {_called(material, least)}"))
    alike = max(
        (row for row in rows if row.agreement is not None), key=lambda row: row.agreement or 0.0, default=None
    )
    if alike is not None:
        found.append(
            Figure(
                "Closest to the unreduced model",
                _share(alike),
                f"of answers alike, {_called(material, alike)}",
            )
        )
    fast = max(
        (row for row in rows if row.speedup is not None), key=lambda row: row.speedup or 0.0, default=None
    )
    if fast is not None:
        found.append(Figure("Fastest", f"{fast.speedup:.2f} ×", f"measured, {_called(material, fast)}"))
    return found


def _called(material: Material, row: Row) -> str:
    return row.method if len(material.budgets) < 2 else f"{row.method} at {setting(row)}"


def warnings(material: Material) -> list[str]:
    """Sentences that a reader needs before believing the table."""
    rows, base, run, found = material.rows, material.baseline, material.run, []
    any_row = base or (rows[0] if rows else None)
    if any_row and any_row.limited:
        found.append(
            f"Only the first {any_row.n_images} images were evaluated; a whole run may rank methods otherwise."
        )
    if base and base.baseline_off:
        published = _percent(base.published_top1)
        found.append(f"The unreduced model has {_percent(base.top1)} here, and {published} is published of these weights; "
                     "check the data, its preparation and the weights before reading on.")  # fmt: skip
    if base and base.top1 is None:
        found.append(
            "These images have no labels: there is no accuracy, and agreement with the unreduced model stands for it."
        )
    elif isinstance(run.get("notes"), list):
        found += map(str, run["notes"])
    if any_row and any_row.n_failed:
        how = "left out" if any_row.on_error == "skip" else "counted as wrong for every model"
        found.append(
            f"{_count(any_row.n_failed, 'image')} could not be read and {'is' if any_row.n_failed == 1 else 'are'} {how}."
        )
    for status, text in (
        ("failed", "failed"),
        ("unfitted", "not fitted yet"),
        ("unreachable", "cannot meet the budget"),
    ):
        names = list(dict.fromkeys(material.called(row) for row in rows if row.status == status))
        if names:
            found.append(f"No result, {text}: {', '.join(names)}. The notes in the table say why.")
    for attribute, text in (
        ("unfitted", "Random parameters, no result"),
        ("fitted_here", "Fitted on or chosen by these very images"),
    ):
        names = list(
            dict.fromkeys(row.method for row in rows if getattr(row, attribute) and row.status == "ok")
        )
        if names:
            found.append(f"{text}: {', '.join(names)}.")
    weak = [
        f"{material.called(row)} ({', '.join(row.unbeaten.split())})"
        for row in rows
        if row.unbeaten and row.status == "ok"
    ]
    if weak:
        found.append(f"Not shown to beat a control: {'; '.join(weak)}.")
    if run.get("smallest_batch"):
        found.append(f"For lack of memory batches had {run['smallest_batch']} images.")
    if run.get("kinds"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in run["kinds"].items())
        found.append(f"Files that are not plain 8-bit colour: {kinds}.")
    return found


def _percent(value: float | None) -> str:
    return "no top-1" if value is None else f"{value:.2f} % top-1"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def provenance(material: Material) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of facts: each a heading and pairs of what and value; what is unknown is left out."""
    run, row = material.run, material.baseline or (material.rows[0] if material.rows else Row(""))
    chosen = run["configuration"]
    software = run.get("software", {})
    groups = [
        ("Model", [
            ("Model", row.model), ("Weights", row.weights), ("SHA-256", row.weights_hash), ("Published", _text(run.get("reference"))),
            *_card(run.get("card")),
        ]),
        ("Images", [
            ("Data", " ".join(filter(None, (row.dataset, row.split)))), ("Images", _text(row.n_images)), ("SHA-256", row.data_hash),
            ("Prepared", f"{row.img_size} px, crop {_text(row.crop_pct)}, {row.interpolation}" if row.img_size else ""),
            ("Unreadable", _text(row.n_failed or None)),
        ]),
        ("Run", [
            ("Command", _text(run.get("command"))), ("Date", row.date), ("Took", _took(run)), ("Device", row.device),
            ("Precision", row.precision), ("Images in a batch", _text(row.batch_size)), ("Seed", _text(row.seed)),
            ("Layers", _text(chosen.get("stages") or chosen.get("protocol"))),
        ]),
        ("Software", [
            *((name, str(getattr(row, name))) for name in ("tokred", "commit", "torch", "timm", "fvcore")),
            *((name, _text(software.get(name))) for name in ("numpy", "pillow")), ("Code, SHA-256", _text(software.get("code"))),
        ]),
    ]  # fmt: skip
    return [(heading, [(name, text) for name, text in pairs if text]) for heading, pairs in groups]


def _card(card: Any) -> list[tuple[str, str]]:
    card = card if isinstance(card, Mapping) else {}
    images = card.get("images_seen")
    return [
        ("Trained on", f"{images:,} images" if isinstance(images, int) else ""),
        ("Made by", _text(card.get("command"))),
        ("Note", _text(card.get("note"))),
    ]


def fitted(material: Material) -> list[tuple[str, str, str, str]]:
    """The fitted parameters in use: outcome, file, how many images they saw, and their hash."""
    cards = material.run.get("adapters")
    hashes = material.run["configuration"].get("adapters")
    if not isinstance(cards, Mapping) or not isinstance(hashes, Mapping):
        return []
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
    more = [
        f"{run[name]} {what}"
        for name, what in (("processes", "processes"), ("threads", "threads"))
        if (run.get(name) or 1) > 1
    ]
    return f"{seconds:,.0f} s" + (f" with {' and '.join(more)}" if more else "")
