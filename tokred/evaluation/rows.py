"""What a comparison comes to: its rows, and what its folder says about it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokred.core.vit import num_patches
from tokred.errors import TokredError
from tokred.evaluation import candidates, published_accuracy
from tokred.evaluation.metrics import fidelity, score
from tokred.evaluation.predictions import Predictions
from tokred.evaluation.significance import judge
from tokred.tables import row as results
from tokred.tables.row import Row
from tokred.utils.provenance import versions

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Comparison, Job


def rows(job: Job) -> list[Row]:
    """The unreduced model's row and one for each entry, about all images that have been evaluated.

    Raises:
        TokredError: none of them could be read.
    """
    found = job.evaluation
    chosen = np.flatnonzero(found.readable if job.config.on_error == "skip" else found.done)
    if found.done.any() and not found.readable.any():
        raise TokredError(
            f"None of the {int(found.done.sum())} images could be read: {found.unreadable[min(found.unreadable)]}"
        )
    rows, right = [_row(job, "")], dict[int, np.ndarray]()
    truth = found.labels if job.source.labelled else found.dense.prediction
    candidates.describe_baseline(rows[0], job.costs)
    _score(job, rows[0], found.dense, chosen)
    _time(job, rows[0], results.BASELINE)
    for place, entry in enumerate(job.entries, start=1):
        row = _row(job, entry.method)
        entry.describe(job.config, job.costs, row)
        row.fitted_here |= entry.adapter is not None and entry.adapter.saw(job.source.images_hash)
        if entry.name in found.failed:
            row.status, row.error = "failed", found.failed[entry.name].reason
        elif entry.model is not None:
            _score(job, row, found.methods[entry.name], chosen)
            _time(job, row, entry.name)
            right[place] = (found.methods[entry.name].prediction == truth)[chosen]
        rows.append(row)
    if len(chosen):
        flags = judge(rows, right, job.source.groups[chosen])
        rows = [replace(row, **vars(flag)) for row, flag in zip(rows, flags, strict=True)]
    published_accuracy.mark(rows, published_accuracy.published(job.loaded, job.source, job.preparation))
    return rows


def _score(job: Job, row: Row, outcomes: Predictions, chosen: np.ndarray) -> None:
    """Enter accuracy, and for a method what it lost."""
    if not len(chosen):
        return
    found = job.evaluation
    taken, dense, groups = outcomes.take(chosen), found.dense.take(chosen), job.source.groups[chosen]
    if job.source.labelled:
        scores = score(taken, dense, found.labels[chosen], groups, job.config.seed)
    else:
        scores = fidelity(taken, dense, groups, job.config.seed)
    for name, value in asdict(scores).items():
        setattr(row, name, value)
    if row.method == results.BASELINE:
        row.p_value = row.agreement = row.agreement_lo = row.agreement_hi = row.kl = row.drop_lo = (
            row.drop_hi
        ) = None


def _time(job: Job, row: Row, name: str) -> None:
    """Enter speed, where it was measured."""
    for column in ("images_per_s", "latency_ms", "speedup", "promise_share", "peak_mem_mb"):
        setattr(row, column, job.speeds.get(name, {}).get(column))


def _row(job: Job, method: str) -> Row:
    """What all rows have in common."""
    found, skip = job.evaluation, job.config.on_error == "skip"
    return Row(
        method,
        model=job.config.model,
        dataset=job.source.name,
        split=job.source.split,
        n_images=int((found.readable if skip else found.done).sum()),
        n_failed=len(found.unreadable),
        limited=job.source.limited or not found.done.all(),
        training="none",
        weights=job.loaded.weights,
        weights_hash=job.loaded.weights_hash,
        data_hash=job.source.hash,
        img_size=job.preparation.img_size,
        crop_pct=job.preparation.crop_pct,
        interpolation=job.preparation.interpolation,
        precision=str(job.dtype).removeprefix("torch."),
        device=job.device.type,
        batch_size=job.batch_size,
        seed=job.config.seed,
        on_error="" if job.config.on_error == "fail" else job.config.on_error,
        smallest_batch=found.smallest_batch,
        **_versions(job),
    )


def _versions(job: Job) -> dict[str, Any]:
    """Those with which the run began: one that goes on has the same code."""
    now = versions()
    return {key: job.folder.run.get(key, value) for key, value in now.items()} if job.folder else now


def about(job: Job, comparison: Comparison) -> dict[str, Any]:
    """What run.json says beside the configuration."""
    found = job.evaluation
    kinds = sorted(set(found.kinds.values()))
    return {
        "title": job.title,
        "notes": job.notes,
        "seconds": round(comparison.seconds, 1),
        "waiting_for_images": round(comparison.waiting, 3),
        "threads": torch.get_num_threads(),
        "processes": job.processes.world,
        "card": job.loaded.card,
        "published": job.loaded.published,
        "reference": published_accuracy.note(job.loaded, job.source, job.preparation),
        "adapters": {
            entry.name: {"file": entry.adapter.path.name, **entry.adapter.card}
            for entry in job.entries
            if entry.adapter
        },
        "errors": _errors(job),
        "unreadable": {str(index): text for index, text in sorted(found.unreadable.items())},
        "kinds": {kind: sum(other == kind for other in found.kinds.values()) for kind in kinds},
        "smallest_batch": found.smallest_batch,
        "speeds": job.speeds,
        "patches": num_patches(job.loaded.model),
        "depth": len(job.loaded.model.blocks),
        "class_names": None if job.source.class_names is None else list(job.source.class_names),
        "command": job.command,
    }


def _errors(job: Job) -> dict[str, str]:
    refused = {entry.name: str(entry.refused) for entry in job.entries if entry.refused}
    return refused | {name: failure.reason for name, failure in sorted(job.evaluation.failed.items())}
