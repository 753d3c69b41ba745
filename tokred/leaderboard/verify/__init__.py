"""Verifying rows: every column must follow from the predictions, and the model must reproduce these.

The run is set up again from its configuration, weights and images, and each row is built again by the code
that built it first. Then a random sample of its batches is evaluated again. With the hardware and software of
the run all results are identical. Otherwise rounding differs, and `compare.LIMITS` limits the differences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokred.errors import TokredError, did_you_mean
from tokred.evaluation.run_folder import Run
from tokred.leaderboard import publish
from tokred.leaderboard.board import locked
from tokred.leaderboard.evidence import VERIFIED, Evidence, read_verified
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.ranked_row import RankedRow, run_of
from tokred.leaderboard.verify.compare import Check, unchecked
from tokred.tables.render import Table
from tokred.utils.atomic import replace_file

if TYPE_CHECKING:
    from tokred.leaderboard.verify.rerun import Places

Bars = Callable[[int], AbstractContextManager[Callable[..., None]]]
_HEADERS = ("Method", "Budget", "Images", "Agreeing", "Near ties", "Top-1 stored", "Top-1 now", "Verdict")


@dataclass(frozen=True)
class Verification:
    """The checks of all rows, and remarks on what was not checked."""

    checks: list[Check]
    remarks: list[str]

    @property
    def confirmed(self) -> bool:
        """Whether all rows are confirmed."""
        return all(not check.objections for check in self.checks)


def verify(
    target: Path,
    methods: Sequence[str] = (),
    sample: int = 64,
    seed: int = 0,
    places: Places | None = None,
    bar: Bars = lambda total: nullcontext(lambda count: None),
) -> Verification:
    """Check the rows of a run or of a board, and store the results beside them.

    Args:
        target: the folder of a run, or a board.
        methods: names of methods; by default all.
        sample: number of images of each run to evaluate again.
        seed: seed of the choice of batches.
        places: the present places of data, weights and adapters.
        bar: function that makes a progress bar for a number of images.

    Raises:
        TokredError: there is nothing to check, or none of the runs can be repeated.
    """
    path = publish.find(target)
    ranked, run = publish.ranked_rows(path), run_of(path)
    checks, runs, errors = _chosen(ranked, methods, path), dict[str, list[Check]](), list[TokredError]()
    for check in checks:
        if check.row.disputed:
            check.objections.append(check.row.disputed)
        elif "facts" not in check.evidence.run:
            check.objections.append(
                "cannot be checked: its predictions or its run's configuration are missing"
            )
        else:
            runs.setdefault(_run(check.row), []).append(check)
    for about, members in runs.items():
        evidence = [one.evidence for one in ranked if one.evidence and _run(one) == about]
        try:
            _repeat(members, evidence, run, json.loads(about), places, sample, seed, bar)
        except TokredError as error:
            errors.append(error)
            for check in members:
                check.objections.append(str(error))
    if errors and len(errors) == len(runs) and not any(check.row.disputed for check in checks):
        raise errors[0]
    repeated = [check for check in checks if check.images]
    return Verification(checks, [*unchecked(repeated), *_note(path, run, repeated)])


def _repeat(
    checks: Sequence[Check],
    evidence: Sequence[Evidence],
    run: Run | None,
    about: Mapping[str, Any],
    places: Places | None,
    sample: int,
    seed: int,
    bar: Bars,
) -> None:
    """Set up a run again by its run.json, build its rows, evaluate a sample, and enter what differs."""
    from tokred.leaderboard.verify import rerun

    job = rerun.job_of(about, places or rerun.Places())
    rows, unknown = rerun.rebuild(job, evidence, run)
    batches = rerun.batches(len(job.source), job.batch_size, sample, seed)
    with bar(sum(map(len, batches))) as advance:
        evaluation = rerun.run(job, [check.evidence for check in checks], batches, advance)
    for check in checks:
        check.compare_sample(evaluation, run, str(job.dtype).removeprefix("torch."))
        check.compare_row(rows.get(check.evidence.name), unknown)


def _run(ranked: RankedRow) -> str:
    """The run of a row as text, which is the same for all rows of a run."""
    return json.dumps(ranked.evidence.run, sort_keys=True) if ranked.evidence else ""


def _chosen(ranked: Sequence[RankedRow], methods: Sequence[str], path: Path) -> list[Check]:
    measured = [one for one in ranked if one.row.status == "ok"]
    names = list(dict.fromkeys(one.row.method for one in measured))
    for method in methods:
        if method not in names:
            raise TokredError(did_you_mean("method", method, names))
    if not measured:
        advice = "add a run to it with tokred leaderboard add"
        raise TokredError(f"{path} has no measured row to check; {advice}.")
    return [Check(one) for one in measured if not methods or one.row.method in methods]


def _note(path: Path, run: Run | None, checks: Sequence[Check]) -> list[str]:
    """Store the results: for a board in the evidence of each row, for a run in a file in its folder."""
    from tokred.utils.provenance import versions

    results = [(check, {**check.result, **versions()}) for check in checks]
    try:
        if run is not None:
            noted = read_verified(run.path) | {check.evidence.name: result for check, result in results}
            replace_file(run.path / VERIFIED, (json.dumps(noted, indent=2) + "\n").encode())
        else:
            store = Store(path)
            with locked(path, 60):
                for check, result in results:
                    if store.has(check.row.key, check.evidence):  # not replaced meanwhile
                        store.put(check.row.key, replace(check.evidence, verified=result))
    except TokredError as error:
        return [f"The results could not be stored beside {path}: {error}"]
    return []


def table(result: Verification) -> Table:
    """The checks as a table."""
    rows = []
    for check in result.checks:
        row, counts = check.row.row, (check.images, check.agreeing, check.ties)
        numbers = [str(count) if check.images else "" for count in counts]
        top1 = [f"{value:.2f}" for value in check.top1] if check.top1 else ["", ""]
        budget = "" if row.budget is None else f"{row.budget:g}"
        rows.append((row.method, budget, *numbers, *top1, check.verdict))
    styles = ["red" if check.objections else "" for check in result.checks]
    return Table(title="Verified rows", headers=_HEADERS, rows=rows, words=frozenset((0, 7)), styles=styles)
