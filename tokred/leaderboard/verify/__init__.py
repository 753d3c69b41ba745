"""Checking that every column of a row follows from its predictions, and that its model makes them again.

The run is set up again from its own configuration, weights and images, and each row is built again by the
code that built it. Then whole batches of the run, drawn by a seed, are evaluated again. On the machine and
software of the run everything is the same to the last bit. Elsewhere rounding differs, and `compare.LIMITS`
says how much of a difference is allowed.
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
from tokred.evaluation.run_folder import Run
from tokred.leaderboard import publish
from tokred.leaderboard.board import locked, run_of
from tokred.leaderboard.evidence import VERIFIED, read_verified
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.ranking_groups import RankedRow
from tokred.leaderboard.verify.compare import Check, compare_row, compare_sample
from tokred.tables.render import Table
from tokred.tables.row import COLUMNS
from tokred.utils.atomic import replace_file

if TYPE_CHECKING:
    from tokred.leaderboard.verify.rerun import Places

Bars = Callable[[int], AbstractContextManager[Callable[..., None]]]
_HEADERS = ("Method", "Budget", "Images", "Agreeing", "Near ties", "Top-1 stored", "Top-1 again", "Verdict")


@dataclass
class Verification:
    """The checks of all rows, and sentences about what was not checked."""

    checks: list[Check] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def confirmed(self) -> bool:
        """Whether nothing speaks against any row."""
        return all(not check.objections for check in self.checks)


def verify(
    target: Path,
    methods: Sequence[str] = (),
    sample: int = 64,
    seed: int = 0,
    places: Places | None = None,
    bar: Bars = lambda total: nullcontext(lambda count: None),
) -> Verification:
    """Check a run, or the rows of a board that have their evidence, and note the result beside them.

    Args:
        target: the folder of a run, or a board.
        methods: names of methods; by default all.
        sample: the number of images of each run to evaluate again.
        seed: chooses the batches.
        places: where data, weights and adapters are now.
        bar: makes a progress bar for a number of images.

    Raises:
        TokredError: there is nothing to check, or no run of it can be repeated.
    """
    path = publish.find(target)
    ranked, run = publish.ranked_rows(path), run_of(path)
    checks, runs, errors = _chosen(ranked, methods, path), dict[str, list[Check]](), list[TokredError]()
    for check in checks:
        if check.row.disputed:
            check.objections.append(check.row.disputed)
        elif check.row.evidence is None or "configuration" not in check.row.evidence.run:
            check.objections.append(
                "cannot be checked: its predictions or its run's configuration are not here"
            )
        else:
            runs.setdefault(_about(check.row), []).append(check)
    for about, members in runs.items():
        beside = [one for one in ranked if _about(one) == about]
        try:
            _repeat(json.loads(about), members, beside, run, sample, seed, places, bar)
        except TokredError as error:
            errors.append(error)
            for check in members:
                check.objections.append(str(error))
    if errors and len(errors) == len(runs) and not any(check.row.disputed for check in checks):
        raise errors[0]
    repeated = [check for check in checks if check.images]
    return Verification(checks, [*_unchecked(repeated), *_note(path, run, repeated)])


def _about(ranked: RankedRow) -> str:
    """A row's run, as text that is the same for all rows of a run."""
    return json.dumps(ranked.evidence.run, sort_keys=True) if ranked.evidence else ""


def _chosen(ranked: Sequence[RankedRow], methods: Sequence[str], path: Path) -> list[Check]:
    measured = [one for one in ranked if one.row.status == "ok"]
    names = list(dict.fromkeys(one.row.method for one in measured))
    for method in methods:
        if method not in names:
            raise TokredError(did_you_mean("method", method, names))
    if not measured:
        raise TokredError(
            f"{path} has no measured row to check; add a run to it with tokred leaderboard add."
        )
    return [Check(one) for one in measured if not methods or one.row.method in methods]


def _repeat(
    about: dict[str, Any],
    checks: Sequence[Check],
    beside: Sequence[RankedRow],
    run: Run | None,
    sample: int,
    seed: int,
    places: Places | None,
    bar: Bars,
) -> None:
    """Set up one run again, and check its rows and a sample of their predictions."""
    from tokred.leaderboard.verify import rerun

    job = rerun.job_of(about, places or rerun.Places())
    total, before = len(job.source), dict[str, np.ndarray]()
    rows, unchecked = rerun.rebuild(job, about, beside, run)
    for check in checks:
        evidence = check.row.evidence
        assert evidence is not None
        if len(evidence.places) and evidence.places[-1] >= total:
            raise TokredError(
                f"The row has {len(evidence.correct)} images, and its data have {total} now; give the "
                "run's own "
                "with --data."
            )
        before[evidence.name] = np.full(total, -1)
        before[evidence.name][evidence.places] = evidence.prediction
    chosen = rerun.batches(total, job.batch_size, sample, seed)
    with bar(sum(map(len, chosen))) as advance:
        evaluation = rerun.run(job, before, chosen, advance)
    images = np.concatenate([np.arange(batch.start, batch.stop) for batch in chosen])
    for check in checks:
        compare_sample(check, job, evaluation, images, run)
        compare_row(check, rows, unchecked)


def _unchecked(checks: Sequence[Check]) -> list[str]:
    """A sentence about the columns that were not computed again."""
    names = [
        name
        for name in COLUMNS
        if any(name in check.unchecked and getattr(check.row.row, name) not in (None, "") for check in checks)
    ]
    if not names:
        return []
    return [f"Not computed again, and at most compared with run.json: {', '.join(names)}."]


def _note(path: Path, run: Run | None, checks: Sequence[Check]) -> list[str]:
    """Keep the results: a board's with each row's evidence, a run's in a file in its folder."""
    from tokred.utils.provenance import versions

    results = {}
    for check in checks:
        assert check.row.evidence is not None
        results[check.row.key] = replace(
            check.row.evidence,
            verified={
                "digest": check.row.evidence.digest,
                "confirmed": not check.objections,
                "verdict": check.verdict,
                "images": check.images,
                "agreeing": check.agreeing,
                "near_ties": check.ties,
                **versions(),
            },
        )
    try:
        if run is not None:
            noted = read_verified(run.path) | {one.name: one.verified for one in results.values()}
            replace_file(run.path / VERIFIED, (json.dumps(noted, indent=2) + "\n").encode())
        else:
            store = Store(path)
            with locked(path, 60):
                for key, evidence in results.items():
                    if store.has(key, evidence):  # it may have been replaced meanwhile
                        store.put(key, evidence)
    except TokredError as error:
        return [f"The outcome could not be noted beside {path}: {error}"]
    return []


def table(result: Verification) -> Table:
    """The checks as a table."""
    rows = []
    for check in result.checks:
        row, counts = check.row.row, (check.images, check.agreeing, check.ties)
        rows.append(
            (
                row.method,
                "" if row.budget is None else f"{row.budget:g}",
                *(str(count) if check.images else "" for count in counts),
                *(f"{value:.2f}" for value in check.top1 or ()),
                *([] if check.top1 else ["", ""]),
                check.verdict,
            )
        )
    styles = ["red" if check.objections else "" for check in result.checks]
    return Table(title="Rows run again", headers=_HEADERS, rows=rows, words=frozenset((0, 7)), styles=styles)
