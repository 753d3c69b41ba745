"""Checking rows: do their numbers follow from their predictions, and do the predictions come out again?

Whole batches of the run, drawn by a seed, are run with the run's own configuration, weights and images. On the machine and software of the
run everything comes out the same to the last bit. Elsewhere rounding differs, so a row is confirmed unless more than that has to be
assumed; `checks.LIMITS` and docs/leaderboard.md say what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokred.errors import TokredError, did_you_mean
from tokred.leaderboard import publish
from tokred.leaderboard.board import CSV_NAME, locked, run_of
from tokred.leaderboard.evidence import VERIFIED, RunOutcomes, number
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.ranking_groups import Standing
from tokred.leaderboard.verify.compare import Check, compare, recount
from tokred.utils.atomic import replace_file
from tokred.utils.text import visible

if TYPE_CHECKING:
    from rich.table import Table

    from tokred.leaderboard.verify.rerun import Places

Bars = Callable[[int], AbstractContextManager[Callable[..., None]]]


@dataclass
class Verification:
    """All rows that were checked, and sentences about the rest."""

    checks: list[Check] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def confirmed(self) -> bool:
        return all(not check.objections for check in self.checks)


def verify(
    target: Path,
    methods: Sequence[str] = (),
    sample: int = 64,
    seed: int = 0,
    places: Places | None = None,
    bar: Bars = lambda total: nullcontext(lambda count: None),
) -> Verification:
    """Check a run, or the rows of a board that have their evidence, and note the outcome where they are.

    Args:
        target: folder of a run, or a board.
        methods: names; by default all.
        sample: images of each run to run again.
        seed: of the choice of batches.
        places: where data, weights and adapters are now.
        bar: makes a progress bar for so many images.

    Raises:
        TokredError: there is nothing to check, or no run of it can be repeated.
    """
    path = publish.find(target)
    rows = _chosen(publish.standings(path), methods, path)
    found, runs = Verification([Check(row) for row in rows]), dict[str, list[Check]]()
    for check in found.checks:
        if check.row.disputed:
            check.objections.append(check.row.disputed)
        elif check.row.evidence is None or "configuration" not in check.row.evidence.run:
            check.objections.append(
                "cannot be checked: its predictions or its run's configuration are not here"
            )
        else:
            runs.setdefault(json.dumps(check.row.evidence.run, sort_keys=True), []).append(check)
    outcomes, errors = _outcomes(path), []
    for run, checks in runs.items():
        try:
            _repeat(json.loads(run), checks, outcomes, sample, seed, places, bar)
        except TokredError as error:
            errors.append(error)
            for check in checks:
                check.objections.append(str(error))
    if errors and len(errors) == len(runs) and not any(check.row.disputed for check in found.checks):
        raise errors[0]
    found.remarks += _note(path, [check for check in found.checks if check.images])
    return found


def _chosen(rows: list[Standing], methods: Sequence[str], path: Path) -> list[Standing]:
    measured = [row for row in rows if row.line["status"] == "ok"]
    names = list(dict.fromkeys(row.line["method"] for row in measured))
    for method in methods:
        if method not in names:
            raise TokredError(did_you_mean("method", method, names))
    if not measured:
        raise TokredError(
            f"{path} has no measured row to check; add a run to it with tokred leaderboard add."
        )
    return [row for row in measured if not methods or row.line["method"] in methods]


def _outcomes(path: Path) -> RunOutcomes | None:
    try:
        return run_of(path)
    except ValueError as error:
        raise TokredError(f"{error}; without it there is nothing to compare with.") from error


def _repeat(
    run: dict[str, Any],
    checks: list[Check],
    outcomes: RunOutcomes | None,
    sample: int,
    seed: int,
    places: Places | None,
    bar: Bars,
) -> None:
    """Run a sample of one run again, and enter what came of it into the checks of its rows."""
    from tokred.leaderboard.verify import rerun

    job = rerun.job_of(run, places or rerun.Places())
    total, before = len(job.source), dict[str, np.ndarray]()
    for check in checks:
        evidence = check.row.evidence
        assert evidence is not None
        if len(evidence.places) and evidence.places[-1] >= total:
            raise TokredError(
                f"The row has {len(evidence.correct)} images, and its data have {total} now; give the run's own with --data."
            )
        before[evidence.name] = np.full(total, -1)
        before[evidence.name][evidence.places] = evidence.prediction
    chosen = rerun.batches(total, job.batch_size, sample, seed)
    with bar(sum(map(len, chosen))) as advance:
        evaluation = rerun.run(job, before, chosen, advance)
    images = np.concatenate([np.arange(batch.start, batch.stop) for batch in chosen])
    for check in checks:
        compare(check, job, evaluation, images, outcomes)
        recount(check, job)


def _note(path: Path, checks: Sequence[Check]) -> list[str]:
    """Keep what was found: beside a board with each row's evidence, in a run's folder in a file; what is in the way of that."""
    from tokred.utils.provenance import versions

    now = versions()
    for check in checks:
        assert check.row.evidence is not None
        about = {
            "digest": check.row.evidence.digest,
            "confirmed": not check.objections,
            "verdict": check.verdict,
            "images": check.images,
        }
        check.row.evidence = replace(
            check.row.evidence, verified={**about, "agreeing": check.agreeing, "near_ties": check.ties, **now}
        )
    try:
        if path.name == CSV_NAME and (path.parent / "run.json").exists():
            _note_run(path.parent, checks)
        else:
            _note_board(path, checks)
    except TokredError as error:
        return [f"The outcome could not be noted beside {path}: {error}"]
    return []


def _note_run(folder: Path, checks: Sequence[Check]) -> None:
    file = folder / VERIFIED
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = {}
    found = {check.row.evidence.name: check.row.evidence.verified for check in checks if check.row.evidence}
    replace_file(file, (json.dumps({**before, **found}, indent=2) + "\n").encode())


def _note_board(board: Path, checks: Sequence[Check]) -> None:
    store = Store(board)
    with locked(board, 60):
        for check in checks:
            if check.row.evidence and store.has(
                check.row.key, check.row.evidence
            ):  # it may have been replaced meanwhile
                store.put(check.row.key, check.row.evidence)


def table(found: Verification) -> Table:
    """What was found, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="Rows run again", title_justify="left", header_style="bold")
    for header in (
        "Method",
        "Budget",
        "Images",
        "Agreeing",
        "Near ties",
        "Top-1 stored",
        "Top-1 again",
        "Verdict",
    ):
        made.add_column(
            header, justify="left" if header in ("Method", "Verdict") else "right", overflow="fold"
        )
    for check in found.checks:
        budget = number(check.row.line["budget"])
        name = (visible(check.row.line["method"]), "" if budget is None else f"{budget:g}")
        counts = [str(value) if check.images else "" for value in (check.images, check.agreeing, check.ties)]
        top1 = [f"{value:.2f}" for value in check.top1] if check.top1 else ["", ""]
        cells = (*name, *counts, *top1, visible(check.verdict))
        made.add_row(*map(Text, cells), style="red" if check.objections else "")
    return made
