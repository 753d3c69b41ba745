"""`report.html`: a finished run on one self-contained page.

The content of each section comes from a module of its own, and page.html.j2 lays it out with style.css and
script.js. The page requests nothing from other hosts, which its content security policy forbids.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup, escape

from tokred.evaluation.candidates import default_texts
from tokred.evaluation.run_folder import Run
from tokred.plots import inline, pareto
from tokred.report import classes, headlines, main_table, merge_maps, template, token_schedule
from tokred.report.run_data import RunData
from tokred.report.template import ASSETS
from tokred.tables.row import BASELINE, COLUMNS, MEASURES, Row, csv_cell
from tokred.utils.text import visible

_PLOTS: dict[pareto.Axis, str] = {
    "gflops": "Accuracy against FLOPs",
    "images_per_s": "Accuracy against measured speed",
}


def page(run: Run) -> str:
    """Render the page of a run as HTML; sections whose files are missing are left out.

    Raises:
        TokredError: the arrays are not those of maps.npz.
    """
    rows = [_sound(row) for row in run.rows]
    data = RunData(rows, run.about, run.predictions, run.maps)
    return template.render(
        ASSETS / "page.html.j2",
        styles=[ASSETS / "style.css"],
        scripts=[ASSETS / "script.js"],
        title=_title(data),
        data=data,
        baseline=data.baseline,
        summary=_tied(headlines.summary(data)),
        figures=headlines.figures(data),
        warnings=[_tied(text) for text in headlines.warnings(data)],
        table=main_table.page_table(data, default_texts(dict.fromkeys(row.method for row in rows))),
        pivot=main_table.pivot(data),
        plots=_plots(data.rows),
        subjects=merge_maps.subjects(data),
        drops=classes.drops(data),
        little=classes.LITTLE,
        schedules=token_schedule.schedules(data),
        provenance=headlines.provenance(data),
        fitted=headlines.fitted(data),
        all_columns=COLUMNS,
        all_rows=[[csv_cell(getattr(row, name)) for name in COLUMNS] for row in rows],
        run=_json(run.about),
        signed=main_table.signed,
        shade=_shade,
    )


def _sound(row: Row) -> Row:
    """A copy of the row without non-finite values and incomplete intervals."""
    odd = [name for name, value in vars(row).items() if isinstance(value, float) and not math.isfinite(value)]
    for column in ("top1", "drop", "agreement", "nll_rise", *MEASURES):
        limits = (f"{column}_lo", f"{column}_hi")
        if any(name in odd or getattr(row, name) is None for name in limits):
            odd += limits
    nothing: dict[str, Any] = dict.fromkeys(odd)
    return replace(row, **nothing)


def _title(data: RunData) -> str:
    row = data.baseline or (data.rows[0] if data.rows else None)
    if row and row.model:
        return f"{row.model} on {row.dataset} {row.split}".strip()
    return str(data.about.get("title", "A run of tokred"))


def _tied(text: str) -> str:
    """The text with a no-break space before each per cent sign."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text)


def _json(run: Any) -> Markup:
    lines = json.dumps(run, indent=2, ensure_ascii=False).split("\n")
    return Markup("\n".join(escape(visible(line)) for line in lines))


def _plots(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """The title and SVG of each plot that has points."""
    return [
        (title, Markup(inline(pareto.pareto(rows, x, title), f"plot-{x}")))
        for x, title in _PLOTS.items()
        if any(point.method != BASELINE for point in pareto.points(rows, x))
    ]


def _shade(drop: float) -> str:
    """The CSS class of the shade of a drop in points: g2 and g1 for gains, l0 to l5 for losses."""
    if drop < -0.5:
        return "g2" if drop < -3 else "g1"
    return f"l{sum(drop >= limit for limit in (1, 3, 7, 15, 30))}"
