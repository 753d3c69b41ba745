"""`similarity`: neighbouring tokens against all pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokred.commands.console import Progress, err, say, show
from tokred.commands.groups import ImageOptions, RunOptions
from tokred.commands.options import Model, Results, Workers
from tokred.commands.parsing import LAYERS, grouped, parse_numbers
from tokred.utils.text import plain_name

Layers = Annotated[
    str | None, typer.Option(help='Layers to compare, one-based, such as "1 4 7 10"; by default all.')
]
FeaturesName = Annotated[
    str, typer.Option(help="residual: tokens after attention, as LoTM compares; attention: its output alone.")
]


@grouped
def similarity(
    *,
    model: Model = "deit_s",
    layers: Layers = None,
    features: FeaturesName = "residual",
    images: ImageOptions,
    how: RunOptions,
    folder: Results = None,
    workers: Workers = None,
) -> None:
    """Compare the similarity of neighbouring tokens with that of all pairs, by layer (LoTM's premise)."""
    from tokred.evaluation.config import Config

    config = Config(model=model, **images.fields(), **how.fields())
    run_similarity(config, parse_numbers(layers, "--layers", LAYERS), features, folder, workers)


def run_similarity(
    config: Any, layers: tuple[int, ...] | None, features: str, folder: Path | None, workers: int | None
) -> None:
    """Measure similarities, write the results, and print the verdict on the premise."""
    from tokred.studies.similarity import premise, report
    from tokred.studies.similarity.study import Study

    study = Study(config, layers, features)  # type: ignore[arg-type]
    name = f"similarity-{plain_name(config.model)}-{plain_name(study.source.name)}-{study.key}"
    target = folder or Path("runs") / name
    report.check_folder(target)
    say(study.describe())
    try:
        with Progress(len(study.source), "images") as advance:
            measurement = study.run(workers, advance)
        findings = premise.findings(measurement)
    except KeyboardInterrupt:
        say("Interrupted; nothing was written. Use --limit or --layers for a shorter run.", err)
        raise typer.Exit(130) from None
    report.write(measurement, findings, target)
    show(report.premise_table(measurement, findings).render())
    for sentence in premise.sentences(findings):
        say(sentence)
    show(report.paper_table(findings).render())
    say(f"{measurement.about['seconds']:.0f} s. Tables and figures: {target}")
