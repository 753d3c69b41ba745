"""Comparing one row with the row and the predictions that its run gives now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokred.evaluation.run_folder import Run
from tokred.leaderboard.evidence import differences
from tokred.leaderboard.ranking_groups import RankedRow
from tokred.tables.row import BASELINE, COLUMNS, SCHEMA, Row

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Job
    from tokred.evaluation.predictions import Evaluation, Predictions


class Limits(NamedTuple):
    """Differences that other hardware or versions may cause. Shares of the sample allow at least one image.

    Attributes:
        tie: nats by which the stored class may lose now where a prediction differs.
        predictions: the share of images whose prediction may differ within such a tie.
        kl: nats by which an image's KL may differ, and the share of its value that is added to them.
        kl_images: the share of images whose KL may differ by more; where tokens tie, one image can change a
            lot.
    """

    tie: float
    predictions: float
    kl: tuple[float, float]
    kl_images: float


LIMITS = {
    "float32": Limits(tie=0.02, predictions=0.01, kl=(0.005, 0.02), kl_images=0.02),
    "other": Limits(tie=0.25, predictions=0.03, kl=(0.05, 0.25), kl_images=0.1),
}


FROM_RUN = (
    *("images_per_s", "latency_ms", "speedup", "promise_share", "peak_mem_mb"),
    *("tokred", "torch", "timm", "fvcore", "commit", "date"),
)
"""Columns that are compared with run.json, and that nothing can be computed for again."""


@dataclass
class Check:
    """The check of one row.

    Attributes:
        row: the row.
        images: the number of images that were evaluated again.
        agreeing: the number of those whose prediction is the stored one.
        ties: the number of the others whose stored class all but wins.
        top1: accuracy on the sample in per cent, as stored and now.
        objections: the reasons why the row is not confirmed.
        unchecked: the columns that were not computed again.
        exact: whether everything that was compared is the same to the last bit.
    """

    row: RankedRow
    images: int = 0
    agreeing: int = 0
    ties: int = 0
    top1: tuple[float, float] | None = None
    objections: list[str] = field(default_factory=list)
    unchecked: Collection[str] = ()
    exact: bool = False

    @property
    def verdict(self) -> str:
        """The result in words."""
        return "; ".join(self.objections) or ("confirmed, to the last bit" if self.exact else "confirmed")


def compare_row(check: Check, rows: Mapping[str, Row], unchecked: Collection[str]) -> None:
    """Object to every column that is not as in the row that was built again.

    Args:
        check: the check, which is changed.
        rows: the rows of its run, built again, by the names of their predictions.
        unchecked: the columns that there is nothing to compare with.
    """
    assert check.row.evidence is not None
    row, again = check.row.row, rows.get(check.row.evidence.name)
    if again is None:
        check.objections.append("its run's configuration has no such row")
        return
    check.unchecked = {*unchecked, *FROM_RUN}
    values = {name: getattr(again, name) for name in COLUMNS if name != "schema" and name not in unchecked}
    check.objections += differences(row, values, strict=row.schema == SCHEMA)


def compare_sample(
    check: Check, job: Job, evaluation: Evaluation, images: np.ndarray, run: Run | None
) -> None:
    """Object to predictions, labels and, where the run has it, KL that are not as stored.

    Args:
        check: the check, which is changed.
        job: the run, set up again.
        evaluation: the predictions of the sample.
        images: [k], the indices of the sample.
        run: the run's folder, if it is not a board that is checked.
    """
    evidence = check.row.evidence
    assert evidence is not None
    name, failed = evidence.name, evaluation.failed.get(evidence.name)
    now: Any = evaluation.dense if name == BASELINE else evaluation.methods.get(name)
    if now is None or failed:
        reason = failed.reason if failed else "its run's configuration has no such method"
        check.images, check.objections = len(images), [f"does not run: {reason}"]
        return
    place = np.full(len(evaluation.labels), -1)
    place[evidence.places] = np.arange(len(evidence.places))
    images = images[place[images] >= 0]  # those that count
    stored, correct = evidence.prediction[place[images]], evidence.correct[place[images]]
    prediction = now.prediction[images]
    right = (prediction == evaluation.labels[images]) & (prediction >= 0)
    limits = LIMITS["float32" if str(job.dtype) == "torch.float32" else "other"]
    differs = prediction != stored
    tied = differs & (now.gap[images] <= limits.tie)
    check.images, check.agreeing, check.ties = len(images), int((~differs).sum()), int(tied.sum())
    check.top1 = (float(100 * correct.mean()), float(100 * right.mean())) if len(images) else None
    most_ties = max(1, limits.predictions * len(images))
    for count, least, text in (
        ((differs & ~tied).sum(), 0, "predictions are others, by more than a near tie"),
        (tied.sum(), most_ties, "predictions are others, more than rounding explains"),
        ((right != correct)[~differs].sum(), 0, "images have other labels"),
    ):
        if count > least:
            check.objections.append(f"{count} of {len(images)} {text}")
    check.exact = not differs.any() and _same_kl(check, now, images, run, limits)


def _same_kl(check: Check, now: Predictions, images: np.ndarray, run: Run | None, limits: Limits) -> bool:
    """Whether KL is the same to the last bit; a board has none to compare."""
    assert check.row.evidence is not None
    name = check.row.evidence.name
    if run is None or run.predictions is None or name == BASELINE:
        return run is not None
    where = np.searchsorted(run.predictions.images, images)
    before, after = run.predictions.models[name].kl[where], now.kl[images]
    known = now.prediction[images] >= 0
    off = known & ~(np.abs(after - before) <= limits.kl[0] + limits.kl[1] * np.abs(before))
    if off.sum() > max(1, limits.kl_images * len(images)):
        check.objections.append(f"the KL of {int(off.sum())} of {len(images)} images is another")
    return bool((before == after)[known].all())
