"""`reproduce`: the reference paper's tables and figures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tokred.commands.compare import resumable
from tokred.commands.console import Progress, err, out, say, show, speak
from tokred.commands.groups import ImageOptions, RowOptions, RunOptions
from tokred.commands.options import Format, Results, Workers
from tokred.commands.parsing import grouped, parse_names
from tokred.commands.similarity import run_similarity
from tokred.errors import TokredError, UnknownName, did_you_mean
from tokred.tables.render import check_format
from tokred.utils import numbers

TABLES = ("table1", "table2", "table3", "table4")
TARGETS = (*TABLES, "fig1", "fig3")


@grouped
def reproduce(
    target: Annotated[
        str, typer.Argument(metavar="|".join(TARGETS), help="Table or figure of the LoTM paper.")
    ],
    *,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Compare FLOPs only; needs no data or weights.")
    ] = False,
    models: Annotated[
        str | None, typer.Option(help="Comma-separated models of the table; by default all.")
    ] = None,
    images: ImageOptions,
    rows: RowOptions,
    how: RunOptions,
    folder: Results = None,
    workers: Workers = None,
    bench: Annotated[
        int, typer.Option(min=0, max=numbers.MOST_ROUNDS, help="Rounds of timing for fig3; 0 for none.")
    ] = 1,
    form: Format = "table",
) -> None:
    """Measure a table or figure of the LoTM paper, beside the printed values; repeat to resume."""
    check_format(form)
    if target not in TARGETS:
        raise UnknownName(did_you_mean("table or figure", target, list(TARGETS)))
    if flops_only and target not in TABLES:
        raise TokredError(f"--flops-only works for tables only; {target} needs images.")
    from tokred.evaluation.config import Config

    config = Config(**images.fields(), **rows.fields(), **how.fields())
    place = folder or Path("runs") / f"reproduce-{target}{'-flops' if flops_only else ''}"
    if target == "fig1":
        run_similarity(replace(config, model="deit_s"), (1,), "residual", place, workers)
        return
    from tokred.studies.lotm_paper.study import Study

    study = Study(target, config, parse_names(models), flops_only)
    _run(study, place, workers, 0 if target in TABLES else bench, form)


def _run(study: Any, place: Path, workers: int | None, bench: int, form: str) -> None:
    commentary = out if form == "table" else err
    speak(study.first)
    for sentence in (*study.describe(), *study.open(place)):
        say(sentence, commentary)
    if bench:
        models, rounds = sum(len(job.models) + 1 for job in study.jobs.values()), f"{bench} x"
        say(f"Afterwards {models} models are timed alone, {rounds}; --bench 0 skips this.", commentary)
    bar = Progress(study.images, "images") if study.jobs else nullcontext(lambda images: None)
    with resumable(commentary), bar as advance:
        rows = study.run(workers, advance, bench)
    study.write(place, rows)
    show(study.rendered(rows, form))
    say(f"{study.contents}: {place}", commentary)
    if study.notes:
        raise typer.Exit(1)
