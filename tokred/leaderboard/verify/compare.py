"""One row against what came out when it was run again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokred.leaderboard.evidence import RunOutcomes, number
from tokred.leaderboard.ranking_groups import Standing
from tokred.tables.row import BASELINE, csv_cell

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Job
    from tokred.evaluation.predictions import Evaluation, Predictions


class Limits(NamedTuple):
    """What other hardware or versions may change. Shares are of the sample, and never less than one image.

    Attributes:
        tie: nats by which the stored class may lose now where a prediction differs.
        predictions: share of images whose prediction may differ, within such a tie.
        kl: nats by which an image's KL may differ, and the share of its value that comes on top.
        kl_images: share of images whose KL may differ by more: where tokens tie, another choice changes one image a lot.
    """

    tie: float
    predictions: float
    kl: tuple[float, float]
    kl_images: float


LIMITS = {
    "float32": Limits(tie=0.02, predictions=0.01, kl=(0.005, 0.02), kl_images=0.02),
    "other": Limits(tie=0.25, predictions=0.03, kl=(0.05, 0.25), kl_images=0.1),
}
_COUNTED = ("gflops", "reduction", "stages", "tokens", "options")


@dataclass
class Check:
    """What came of one row.

    Attributes:
        images: that were run again.
        agreeing: of them, those whose prediction is the stored one.
        ties: of the others, those whose stored class all but wins.
        top1: per cent on the sample, as stored and now.
        objections: why it is not confirmed.
        exact: whether everything that was compared is the same to the last bit.
    """

    row: Standing
    images: int = 0
    agreeing: int = 0
    ties: int = 0
    top1: tuple[float, float] | None = None
    objections: list[str] = field(default_factory=list)
    exact: bool = False

    @property
    def verdict(self) -> str:
        return (
            "; ".join(self.objections)
            if self.objections
            else "confirmed" + (", to the last bit" if self.exact else "")
        )


def compare(
    check: Check, job: Job, evaluation: Evaluation, images: np.ndarray, outcomes: RunOutcomes | None
) -> None:
    """Predictions, correctness and, where the run has it, KL of the sample."""
    evidence = check.row.evidence
    assert evidence is not None
    name = evidence.name
    now: Any = evaluation.dense if name == BASELINE else evaluation.methods.get(name)
    if now is None or name in evaluation.failed:
        reason = (
            evaluation.failed[name].reason
            if name in evaluation.failed
            else "its run's configuration has no such method"
        )
        check.images, check.objections = len(images), [f"does not run: {reason}"]
        return
    place = np.full(len(evaluation.labels), -1)
    place[evidence.places] = np.arange(len(evidence.places))
    images = images[place[images] >= 0]  # those that count
    stored, correct = evidence.prediction[place[images]], evidence.correct[place[images]]
    right = (now.prediction[images] == evaluation.labels[images]) & (now.prediction[images] >= 0)
    limits, differs = (
        LIMITS["float32" if str(job.dtype) == "torch.float32" else "other"],
        now.prediction[images] != stored,
    )
    tied = differs & (now.gap[images] <= limits.tie)
    check.images, check.agreeing, check.ties = len(images), int((~differs).sum()), int(tied.sum())
    check.top1 = (float(100 * correct.mean()), float(100 * right.mean())) if len(images) else None
    if (differs & ~tied).any():
        check.objections.append(
            f"{int((differs & ~tied).sum())} of {len(images)} predictions are others, by more than a near tie"
        )
    elif tied.sum() > max(1, limits.predictions * len(images)):
        check.objections.append(
            f"{int(tied.sum())} of {len(images)} predictions are others, more than rounding explains"
        )
    if (right != correct)[~differs].any():
        check.objections.append(
            f"{int((right != correct)[~differs].sum())} of {len(images)} images have other labels"
        )
    check.exact = not differs.any() and _compare_kl(check, now, images, outcomes, limits)


def _compare_kl(
    check: Check, now: Predictions, images: np.ndarray, outcomes: RunOutcomes | None, limits: Limits
) -> bool:
    """Whether KL is the same to the last bit; where a board has only predictions there is none to compare."""
    assert check.row.evidence is not None
    name = check.row.evidence.name
    if outcomes is None or name == BASELINE:
        return outcomes is not None
    where = np.searchsorted(outcomes.rows, images)
    before, after = outcomes.arrays[f"{name}/kl"][where], now.kl[images]
    known = now.prediction[images] >= 0
    off = known & ~(np.abs(after - before) <= limits.kl[0] + limits.kl[1] * np.abs(before))
    if off.sum() > max(1, limits.kl_images * len(images)):
        check.objections.append(f"the KL of {int(off.sum())} of {len(images)} images is another")
    return bool((before == after)[known].all())


def recount(check: Check, job: Job) -> None:
    """FLOPs, stages and tokens, which follow from the configuration."""
    assert check.row.evidence is not None
    line, facts = check.row.line, job.facts().get(check.row.evidence.name, job.facts()[BASELINE])
    for column in _COUNTED:
        now = csv_cell(getattr(facts, column))
        one, other = number(line[column]), number(now)
        same = (
            abs(one - other) <= 1e-6 * abs(other)
            if one is not None and other is not None
            else line[column] == now
        )
        if not same:
            check.objections.append(f"{column} {line[column] or 'none'} instead of {now or 'none'}")
