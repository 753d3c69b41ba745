"""`report.html`: everything about a finished run on one page that needs nothing else, from the files in its folder.

`material` reads them, a module for each section makes what is shown, and page.html.j2 lays it out with style.css and script.js, all within
the page. Nothing in it is asked of another host, and a policy in its head forbids that.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from tokred.plots import inline, pareto
from tokred.report import classes, headlines, main_table, maps, token_schedule
from tokred.report.run_data import Material, of_files, of_folder
from tokred.tables.row import BASELINE, COLUMNS, Row, csv_cell
from tokred.utils.text import visible

__all__ = ["Material", "of_files", "of_folder", "page"]

ASSETS = Path(__file__).parent / "assets"


def page(material: Material) -> str:
    """The page, as HTML.

    Raises:
        TokredError: maps.npz is damaged.
    """
    given, material = material, replace(material, rows=[_sound(row) for row in material.rows])
    script = (ASSETS / "script.js").read_text(encoding="utf-8")
    columns = main_table.columns(material)
    return _environment().get_template("page.html.j2").render(
        title=_title(material),
        material=material,
        baseline=material.baseline,
        style=Markup((ASSETS / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        summary=_tied(headlines.summary(material)),
        figures=headlines.figures(material),
        warnings=[_tied(text) for text in headlines.warnings(material)],
        columns=columns,
        lines=main_table.lines(material, columns),
        pivot=main_table.pivot(material),
        plots=_plots(material),
        subjects=maps.subjects(material),
        drops=classes.drops(material),
        little=classes.LITTLE,
        schedules=token_schedule.schedules(material),
        provenance=headlines.provenance(material),
        fitted=headlines.fitted(material),
        all_columns=COLUMNS,
        all_rows=[[csv_cell(getattr(row, name)) for name in COLUMNS] for row in given.rows],
        run=_json(material.run),
        signed=main_table.signed,
        shade=_shade,
    )  # fmt: skip


def _sound(row: Row) -> Row:
    """The row without numbers that are none, and without half an interval: a page is made even of a leaderboard that holds such."""
    odd = [name for name, value in vars(row).items() if isinstance(value, float) and not math.isfinite(value)]
    for limits in (("top1_lo", "top1_hi"), ("drop_lo", "drop_hi"), ("agreement_lo", "agreement_hi")):
        if any(name in odd or getattr(row, name) is None for name in limits):
            odd += limits
    nothing: dict[str, Any] = dict.fromkeys(odd)
    return replace(row, **nothing)


def _title(material: Material) -> str:
    row = material.baseline or (material.rows[0] if material.rows else None)
    return (
        f"{row.model} on {row.dataset} {row.split}".strip()
        if row and row.model
        else str(material.run.get("title", "A run of tokred"))
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(ASSETS, encoding="utf-8")
    return Environment(
        autoescape=True,
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )


def _seen(value: Any) -> Any:
    """Text of others with nothing in it that a reader cannot see; what is markup already, as it is."""
    return visible(value) if type(value) is str else value


def _tied(text: str) -> str:
    """With each per cent sign on the line of its number."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text)


def _json(run: Any) -> Markup:
    return Markup(
        "\n".join(escape(visible(line)) for line in json.dumps(run, indent=2, ensure_ascii=False).split("\n"))
    )


def _plots(material: Material) -> list[tuple[str, Markup]]:
    """The plots that there is something for: what each one is, and its SVG."""
    chosen: list[tuple[pareto.Axis, str]] = [
        ("gflops", "Accuracy against FLOPs"),
        ("images_per_s", "Accuracy against measured speed"),
    ]
    found = []
    for x, title in chosen:
        shown = pareto.points(material.rows, x)
        if any(point.method != BASELINE for point in shown):
            found.append((title, Markup(inline(pareto.pareto(material.rows, x, title), f"plot-{x}"))))
    return found


def _shade(drop: float) -> str:
    """The shade of a cell that holds a drop in points: g2 and g1 for gains, l0 to l5 for losses."""
    if drop < -0.5:
        return "g2" if drop < -3 else "g1"
    return f"l{sum(drop >= limit for limit in (1, 3, 7, 15, 30))}"
