"""Runs of made-up outcomes, in the files that a run leaves, for tests of boards."""

import json

import numpy as np

from tokred.tables import row as results
from tokred.tables.row import BASELINE, Row

COMMON = {
    "model": "deit_s", "dataset": "photodigits", "split": "test", "weights": "timm deit_small_patch16_224.fb_in1k",
    "weights_hash": "w" * 64,
    "data_hash": "d" * 64, "img_size": 224, "crop_pct": 0.9, "interpolation": "bicubic", "precision": "float32", "device": "cpu",
    "batch_size": 16, "seed": 0, "training": "none", "date": "2026-01-02",
}  # fmt: skip


def outcome(right, n=200, first=0):
    """[n] bool: wrong on `n - right` images, from `first` on, so that outcomes are nested or not as a test wants."""
    correct = np.ones(n, dtype=bool)
    correct[np.arange(first, first + n - right) % n] = False
    return correct


def row(method, correct=None, **cells):
    """A row that follows from its outcomes."""
    made = Row(method, **{**COMMON, **cells})
    if method == BASELINE:
        made.budget = made.reduction = None
    else:
        made.budget, made.reduction, made.gflops = (
            cells.get("budget", 0.3),
            cells.get("reduction", 0.3005),
            cells.get("gflops", 3.2),
        )
    if correct is not None:
        made.top1, made.n_images = float(100 * correct.mean()), len(correct)
        half = 196 * float(np.sqrt(correct.mean() * (1 - correct.mean()) / len(correct)))
        made.top1_lo, made.top1_hi = made.top1 - half, made.top1 + half
    for name in ("top1", "top1_lo", "top1_hi", "n_images"):
        if name in cells:
            setattr(made, name, cells[name])
    return made


def folder(path, outcomes, groups=None, rows=None, **cells):
    """The folder of a finished run.

    Args:
        path: of it.
        outcomes: [n] bool by method, with or without the baseline.
        groups: [n], by default every image its own.
        rows: changes to single rows, cells by method.
        cells: of all rows.
    """
    path.mkdir(parents=True, exist_ok=True)
    outcomes = {BASELINE: outcome(190), **outcomes}
    n = len(next(iter(outcomes.values())))
    labels = np.arange(n) % 10
    arrays = {"rows": np.arange(n), "labels": labels, "groups": np.arange(n) if groups is None else groups}
    for name, correct in outcomes.items():
        arrays[f"{name}/prediction"] = np.where(correct, labels, (labels + 1) % 10)
        arrays[f"{name}/top5"] = np.ones(n, dtype=bool)
        arrays[f"{name}/kl"] = np.zeros(n, dtype=np.float32)
    np.savez_compressed(path / "predictions.npz", about=np.array(json.dumps({"unreadable": {}})), **arrays)
    lines = [
        row(name, correct, **{**cells, **(rows or {}).get(name, {})}) for name, correct in outcomes.items()
    ]
    (path / "leaderboard.csv").write_text(results.to_csv(lines), encoding="utf-8")
    (path / "run.json").write_text(json.dumps({"configuration": {"model": "deit_s"}, "data": None}))
    return path
