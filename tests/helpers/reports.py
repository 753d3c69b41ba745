"""Finished runs made up for the tests of reports, in memory and as files."""

import io
import json
from dataclasses import replace

import numpy as np

from tokred.evaluation.predictions import Predictions, RunPredictions
from tokred.tables.row import BASELINE, Row, rank, to_csv

METHODS = ("lotm", "tome", "topk", "random")


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def stored(arrays):
    """Predictions of a run from arrays "labels", "groups" and "NAME/prediction"; None without arrays."""
    if not arrays:
        return None
    n = len(arrays["labels"])
    models = {}
    for name, array in arrays.items():
        if name.endswith("/prediction"):
            models[name.removesuffix("/prediction")] = replace(Predictions.empty(n), prediction=array)
    about = {"key": "", "failed": {}, "unreadable": {}, "kinds": {}, "smallest_batch": None, "seconds": 0.0}
    return RunPredictions(np.arange(n), arrays["labels"], arrays["groups"], models, about)


def run_info(**more):
    configuration = {"seed": 0, "on_error": "fail", "protocol": "native", "adapters": {"sit": "ab" * 32}}
    cards = {"sit": {"file": "deit_t-sit.safetensors", "images_seen": 3200}}
    return {
        "configuration": configuration,
        "adapters": cards,
        "seconds": 12.0,
        "patches": 196,
        "depth": 12,
        **more,
    }


def made_up(budgets=(0.3,), methods=METHODS, classes=10, per_class=4, labelled=True, speed=True, seed=0):
    """Rows and predictions of a run in which method k misses more images than method k - 1."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    n = len(labels)
    arrays = {"labels": labels if labelled else np.full(n, -1), "groups": np.arange(n)}

    def predicted(missed):
        return np.where(rng.random(n) < missed, (labels + 1) % classes, labels)

    arrays[f"{BASELINE}/prediction"] = dense = predicted(0.05)
    common = {
        "model": "deit_t",
        "dataset": "digits",
        "split": "test",
        "n_images": n,
        "weights_hash": "cd" * 32,
        "device": "cpu",
    }
    dense_top1 = 100 * float((dense == labels).mean())
    top1 = {"top1": dense_top1, "top1_lo": dense_top1 - 4, "top1_hi": dense_top1 + 3} if labelled else {}
    rows = [
        Row(
            BASELINE,
            **common,
            **top1,
            gflops=1.258,
            reduction=0.0,
            training="none",
            images_per_s=95.0 if speed else None,
        )
    ]
    for budget in budgets:
        for k, method in enumerate(methods):
            name = method if len(budgets) == 1 else f"{method}@{budget!r}"
            arrays[f"{name}/prediction"] = found = predicted(0.05 + 0.08 * k)
            score = 100 * float((found == labels).mean())
            scores = {"top1": score, "top1_lo": score - 3, "top1_hi": score + 3}
            drop = dense_top1 - score
            scores |= {"drop": drop, "drop_lo": drop - 2, "drop_hi": drop + 2}
            rise = 0.03 * k - 0.01
            scores |= {"nll_rise": rise, "nll_rise_lo": rise - 0.02, "nll_rise_hi": rise + 0.03}
            row = Row(
                method,
                **common,
                budget=budget,
                reduction=budget + 0.0001 * k,
                gflops=1.258 * (1 - budget) - 0.0001 * k,
                control=method == "random",
                training="none",
                options=f"order=o{k}",
                stages="4 7 10",
                tokens="150 110 80",
                agreement=float((found == dense).mean()),
                **(scores if labelled else {}),
                **({"images_per_s": 120.0 + 7 * k, "speedup": 1.2 + 0.07 * k} if speed else {}),
            )
            rows.append(row)
    return rank(rows), arrays


def change(rows, which, **cells):
    """Put changed rows into a list of rows: that of a place, those of a method, or all for None."""
    for place, row in enumerate(rows):
        if which is None or which in (place, row.method):
            rows[place] = replace(row, **cells)


def maps(methods=("lotm", "topk"), images=2, side=32, grid=(4, 4), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 5, (images, len(methods), grid[0] * grid[1])).astype(np.int16)
    pixels = rng.integers(0, 255, (images, side, side, 3), dtype=np.uint8)
    return {
        "index": np.arange(images) + 3,
        "images": pixels,
        "names": np.array(methods),
        "labels": labels,
        "grid": np.array(grid),
    }


def write(folder, rows, arrays=None, run=None, found_maps=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "leaderboard.csv").write_text(to_csv(rows), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(run or run_info()), encoding="utf-8")
    if arrays is not None:
        (folder / "predictions.npz").write_bytes(stored(arrays).pack())
    if found_maps is not None:
        (folder / "maps.npz").write_bytes(archive(**found_maps))
    return folder
