"""Runs of made-up outcomes, in the files that a run leaves, for tests of boards."""

import json

import numpy as np

from tokred.leaderboard.publish import ranked_rows as load
from tokred.leaderboard.ranking_groups import settings
from tokred.tables import row as results
from tokred.tables.row import BASELINE, Row

COMMON = {
    "model": "deit_s",
    "dataset": "photodigits",
    "split": "test",
    "weights": "timm deit_small_patch16_224.fb_in1k",
    "weights_hash": "w" * 64,
    "data_hash": "d" * 64,
    "img_size": 224,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "precision": "float32",
    "device": "cpu",
    "batch_size": 16,
    "seed": 0,
    "training": "none",
    "date": "2026-01-02",
}


def outcome(right, n=200, first=0):
    """[n] bool: wrong on `n - right` images from `first` on, so that a test can nest outcomes or not."""
    correct = np.ones(n, dtype=bool)
    correct[np.arange(first, first + n - right) % n] = False
    return correct


def row(method, correct=None, **cells):
    """A row that follows from its outcomes."""
    values = {**COMMON, "budget": 0.3, "reduction": 0.3005, "gflops": 3.2}
    if correct is not None:
        top1 = float(100 * correct.mean())
        half = 196 * float(np.sqrt(correct.mean() * (1 - correct.mean()) / len(correct)))
        values |= {"top1": top1, "top1_lo": top1 - half, "top1_hi": top1 + half, "n_images": len(correct)}
    if method == BASELINE:
        dense = {"budget": None, "reduction": None, "gflops": cells.get("gflops")}
        return Row(method, **{**values, **cells, **dense})
    return Row(method, **{**values, **cells})


def folder(path, outcomes, groups=None, rows=None, losses=None, **cells):
    """The folder of a finished run.

    Args:
        path: the folder.
        outcomes: [n] bool by method, with or without the baseline.
        groups: [n], by default every image its own.
        rows: changes to single rows, cells by method.
        losses: [n] negative log-likelihoods by method; without, as of an older tokred.
        cells: cells that all rows have.
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
        if losses and name in losses:
            arrays[f"{name}/nll"] = losses[name].astype(np.float32)
    np.savez_compressed(path / "predictions.npz", about=np.array(json.dumps({"unreadable": {}})), **arrays)
    lines = [
        row(name, correct, **{**cells, **(rows or {}).get(name, {})}) for name, correct in outcomes.items()
    ]
    (path / "leaderboard.csv").write_text(results.to_csv(lines), encoding="utf-8")
    (path / "run.json").write_text(json.dumps({"configuration": {"model": "deit_s"}, "data": None}))
    return path


GOOD = {"lotm": outcome(185), "tome": outcome(184, first=3), "topk": outcome(150), "random": outcome(120)}
CONTROL = {"random": {"control": True}}


def made(tmp_path, outcomes=GOOD, name="run", rows=CONTROL, **cells):
    return folder(tmp_path / name, outcomes, rows=rows, **cells)


def standings(board):
    """(setting, group, standing) of everything on a board."""
    for setting in settings(load(board)):
        for group in setting.groups:
            yield from ((setting, group, standing) for standing in (*group.ranked, *group.apart))


def by_method(board):
    return {standing.row.method: standing for _, _, standing in standings(board)}
