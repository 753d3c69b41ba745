"""Comparing a row with the row and the predictions that its run produces now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokred.evaluation.predictions import FEATURES
from tokred.evaluation.run_folder import Run
from tokred.leaderboard.evidence import NO_EVIDENCE, Evidence, differences
from tokred.leaderboard.ranked_row import RankedRow
from tokred.tables.row import BASELINE, COLUMNS, SCHEMA, Row

if TYPE_CHECKING:
    from tokred.evaluation.predictions import Evaluation, Predictions

FROM_RUN = {
    *("images_per_s", "latency_ms", "speedup", "promise_share", "peak_mem_mb"),
    *("tokred", "torch", "timm", "fvcore", "commit", "date"),
}
"""Columns that cannot be computed again; they are compared with run.json."""


class Limits(NamedTuple):
    """Differences that other hardware or versions may cause; a share of the sample is at least one image."""

    tie: float  # nats by which the stored class may lose now where a prediction differs
    predictions: float  # share of images whose prediction may differ within such a tie
    kl: tuple[float, float]  # nats by which an image's KL may differ, and the share of its value besides
    kl_images: float  # share of images whose KL may differ by more: where tokens tie, it can change a lot


LIMITS = {
    "float32": Limits(tie=0.02, predictions=0.01, kl=(0.005, 0.02), kl_images=0.02),
    "other": Limits(tie=0.25, predictions=0.03, kl=(0.05, 0.25), kl_images=0.1),
}


@dataclass
class Check:
    """The check of one row.

    Attributes:
        row: the row.
        images: the number of images that were evaluated again.
        agreeing: the number of those with the stored prediction.
        ties: the number of the others in which the stored class loses by less than `Limits.tie`.
        top1: accuracy on the sample in per cent, as stored and now.
        objections: reasons why the row is not confirmed.
        unchecked: columns that were not computed again.
        exact: whether all predictions and KL divergences are identical.
    """

    row: RankedRow
    images: int = 0
    agreeing: int = 0
    ties: int = 0
    top1: tuple[float, float] | None = None
    objections: list[str] = field(default_factory=list)
    unchecked: set[str] = field(default_factory=set)
    exact: bool = False

    @property
    def evidence(self) -> Evidence:
        """The row's evidence; `NO_EVIDENCE` if it has none."""
        return self.row.evidence or NO_EVIDENCE

    @property
    def verdict(self) -> str:
        """The result in words, for the table."""
        return "; ".join(self.objections) or ("confirmed, to the last bit" if self.exact else "confirmed")

    @property
    def result(self) -> dict[str, Any]:
        """The result as it is stored; the digest says for which predictions."""
        outcome = {"confirmed": not self.objections, "verdict": self.verdict}
        counts = {"images": self.images, "agreeing": self.agreeing, "near_ties": self.ties}
        return {"digest": self.evidence.digest, **outcome, **counts}

    def compare_row(self, again: Row | None, unknown: set[str]) -> None:
        """Object to every column that differs from the row built again, except for `unknown` ones."""
        if again is None:
            self.objections.append("its run's configuration has no such row")
            return
        row, self.unchecked = self.row.row, unknown | FROM_RUN
        values = {name: getattr(again, name) for name in COLUMNS if name not in {*unknown, "schema"}}
        self.objections += differences(row, values, strict=row.schema == SCHEMA)

    def compare_sample(self, evaluation: Evaluation, run: Run | None, dtype: str) -> None:
        """Object to predictions, labels, KL divergences or features that differ from the stored ones.

        A board stores of features their cosine to the dense model's, and no KL divergence.

        Args:
            evaluation: the predictions of the sample.
            run: the run; None if a board is checked.
            dtype: dtype of matrix products, such as "float32".
        """
        evidence, limits = self.evidence, LIMITS.get(dtype, LIMITS["other"])
        now: Any = evaluation.models.get(evidence.name)
        failure = evaluation.failed.get(evidence.name)
        if now is None or failure:
            reason = failure.reason if failure else "its run's configuration has no such method"
            self.images, self.objections = int(evaluation.done.sum()), [f"does not run: {reason}"]
            return
        chosen = evaluation.done[evidence.places]  # the images of the sample that count
        images, n = evidence.places[chosen], int(chosen.sum())
        if evidence.cosine is not None:
            self._compare_features(now, run, evidence.cosine[chosen], images, limits)
            self._compare_labels(run, evaluation, images)
            return
        prediction, stored = now.prediction[images], evidence.prediction[chosen]
        right, correct = prediction == evaluation.labels[images], evidence.correct[chosen]
        right &= prediction >= 0
        differs = prediction != stored
        tied = differs & (now.gap[images] <= limits.tie)
        self.images, self.agreeing, self.ties = n, int((~differs).sum()), int(tied.sum())
        self.top1 = (float(100 * correct.mean()), float(100 * right.mean())) if n else None
        self.exact = run is not None and not differs.any()
        for count, most, text in (
            ((differs & ~tied).sum(), 0, "predictions differ by more than a near tie"),
            (tied.sum(), max(1, limits.predictions * n), "predictions differ, more than rounding explains"),
            ((right != correct)[~differs].sum(), 0, "labels differ"),
        ):
            if count > most:
                self.objections.append(f"{count} of {n} {text}")
        if run is not None and run.predictions is not None and evidence.name != BASELINE:
            stored_kl = run.predictions.models[evidence.name].kl
            before = stored_kl[np.searchsorted(run.predictions.images, images)]
            self._compare_loss("KL", before, now.kl[images], limits)
        if evidence.nll is not None:
            self._compare_loss("NLL", evidence.nll[chosen], now.nll[images], limits)

    def _compare_features(
        self, now: Predictions, run: Run | None, cosine: np.ndarray, images: np.ndarray, limits: Limits
    ) -> None:
        """Object if features, or their distances from the dense model's, differ from the stored ones."""
        before = {"cosine": cosine}
        if run is not None and run.predictions is not None:
            places = np.searchsorted(run.predictions.images, images)
            stored = run.predictions.models[self.evidence.name].take(places).arrays()
            before = {name: stored[name] for name in FEATURES if name in stored}
        self.images, self.exact, differs = len(images), run is not None, np.zeros(len(images), dtype=bool)
        for name, values in before.items():
            differs |= self._compare_loss(name.replace("_", " "), values, getattr(now, name)[images], limits)
        self.agreeing = int((~differs).sum())

    def _compare_labels(self, run: Run | None, evaluation: Evaluation, images: np.ndarray) -> None:
        """Object if the labels by which neighbours vote are not those of the images."""
        if run is not None and run.predictions is not None:
            stored = run.predictions.labels[np.searchsorted(run.predictions.images, images)]
            if count := int((stored != evaluation.labels[images]).sum()):
                self.objections.append(f"{count} of {len(images)} labels differ")

    def _compare_loss(self, name: str, before: np.ndarray, after: np.ndarray, limits: Limits) -> np.ndarray:
        """Object if the KL, NLL or features of images differ from the stored ones; NaN if there are none.

        Returns:
            [n] bool, the images whose values differ.
        """
        off = ~(np.abs(after - before) <= limits.kl[0] + limits.kl[1] * np.abs(before))
        off &= ~(np.isnan(before) & np.isnan(after))
        off = off.reshape(len(off), -1).any(1)
        if off.sum() > max(1, limits.kl_images * len(off)):
            self.objections.append(f"the {name} of {off.sum()} of {len(off)} images differs")
        self.exact &= np.array_equal(before, after, equal_nan=True)
        return off


def unchecked(checks: Sequence[Check]) -> list[str]:
    """A sentence about the columns of rows that were not computed again; none if all were."""

    def is_unchecked(name: str) -> bool:
        return any(name in one.unchecked and getattr(one.row.row, name) not in (None, "") for one in checks)

    names = ", ".join(filter(is_unchecked, COLUMNS))
    return [f"Not computed again, at most compared with run.json: {names}."] if names else []
