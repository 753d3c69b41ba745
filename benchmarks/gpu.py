"""Reduced models on a GPU: correctness, synchronisation, speed, and three forms of proportional attention.

    python benchmarks/gpu.py [--seconds 300] [--out gpu.csv]    # one CUDA device, six minutes
    python benchmarks/gpu.py --device cpu --quick                # a small setting, to try the script

Every reducer decides on the device what it decides on the CPU, gives the same for an image alone, and never
waits for the device. DeiT-S and B at 30 and 40 % run in bfloat16 at batch 1, 64 and 256: eager, compiled and
as a CUDA graph, in turns with timm's model, whose attention is fused, run in the same way. Models for which
the time does not suffice are in the table with "no time".
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

import tokred
from tokred.core import registry
from tokred.evaluation.timing import WARM_UP, interleave, sentence
from tokred.models import zoo
from tokred.testing import build, decide, make_view, map_view, tiny_plan, tiny_vit

METHODS = ("lotm", "tome", "topk")
DENSE = "dense"
Run = Callable[[], Any]


def battery(device: torch.device, methods: list[str]) -> list[dict[str, Any]]:
    """Whether reducers on the device decide as on the CPU, alone as in a batch, without waiting for it."""
    rows = []
    for name in methods:
        for check in (same_as_cpu, alone_as_in_batch, no_waiting):
            try:
                note = check(registry.get(name), device)
            except Exception as error:  # the other checks go on
                note = f"failed: {sentence(error)}"
            rows.append({"part": "battery", "method": name, "mode": check.__name__, "note": note})
    return rows


@torch.inference_mode()
def same_as_cpu(cls: Any, device: torch.device) -> str:
    view, reducer = make_view(), build(cls, 16, 11)
    here = decide(reducer, view)
    there = decide(copy.deepcopy(reducer).to(device), map_view(view, lambda tensor: tensor.to(device)))
    if not torch.equal(here.labels(), there.labels().cpu()):
        return "failed: other labels than on the CPU"
    pooled = here.pool(view.x), there.pool(view.x.to(device)).cpu()
    return "ok" if torch.allclose(*pooled, atol=1e-4) else "failed: other features than on the CPU"


@torch.inference_mode()
def alone_as_in_batch(cls: Any, device: torch.device) -> str:
    view = map_view(make_view(), lambda tensor: tensor.to(device))
    reducer = build(cls, 16, 11).to(device)
    alone = map_view(view, partial(torch.narrow, dim=0, start=1, length=1))
    whole, own = decide(reducer, view).pool(view.x)[1:2], decide(reducer, alone).pool(alone.x)
    return (
        "ok" if torch.allclose(own, whole[:, : own.shape[1]], atol=1e-4) else "failed: depends on the batch"
    )


@torch.inference_mode()
def no_waiting(cls: Any, device: torch.device) -> str:
    if device.type != "cuda":
        return "needs CUDA"
    if cls.host:
        return "works on the host"
    if cls.adaptive():
        return "reads its counts, which depend on the image"
    model = copy.deepcopy(tiny_vit())
    reduced = tokred.ReducedViT(model, tiny_plan(cls, model)).to(device).eval()
    images = torch.randn(2, 3, 48, 48, device=device)
    reduced(images)  # libraries set themselves up on the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        reduced(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "ok"


def eager(model: Any, images: Tensor) -> Run:
    return lambda: model(images)


def compiled(model: Any, images: Tensor) -> Run:
    program = torch.compile(model, dynamic=False)
    return lambda: program(images)


def graph(model: Any, images: Tensor) -> Run:
    """A CUDA graph of the eager model, captured after a warm-up on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP + 1):
            model(images)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        model(images)
    return captured.replay


MODES: dict[str, Callable[[Any, Tensor], Run]] = {"eager": eager, "graph": graph, "compiled": compiled}


@torch.inference_mode()
def speeds(
    name: str, models: Mapping[str, Any], images: Tensor, mode: str, rounds: int, deadline: float
) -> list[dict[str, Any]]:
    """Times of the models in turns, and the median ratio of the dense model's time to each."""
    about = {"part": "speed", "model": name, "mode": mode, "batch": len(images)}
    runs, notes = {}, {}
    for method, model in models.items():
        if time.monotonic() > deadline:
            notes[method] = "no time"
            continue
        try:
            runs[method] = MODES[mode](model, images)
            for _ in range(WARM_UP):
                runs[method]()
        except Exception as error:  # the other models go on
            runs.pop(method, None)
            notes[method] = f"failed: {sentence(error)}"
    seconds = interleave(runs, rounds, images.device, failed=notes) if DENSE in runs else {}
    rows = []
    for method in models:
        row = {**about, "method": method, "note": notes.get(method, "ok" if seconds else "no dense model")}
        if method in seconds and DENSE in seconds:
            row["ms"] = 1e3 * float(np.median(seconds[method]))
            row["speedup"] = float(np.median(seconds[DENSE] / seconds[method]))
        rows.append(row)
    if mode == "compiled":
        torch.compiler.reset()
    return rows


def by_mask(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Attention with the logarithm of the sizes [B, N] as an additive mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=size.log().to(q.dtype)[:, None, None])


def by_key(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Attention of [q, sqrt(d)] and [k, log s]: their products are q k + sqrt(d) log s."""
    d = q.shape[-1]
    log = size.log().to(q.dtype)[:, None, :, None].expand(-1, q.shape[1], -1, -1)
    q, k = torch.cat([q, torch.full_like(q[..., :1], d**0.5)], -1), torch.cat([k, log], -1)
    q, k, v = (F.pad(part, (0, d + 8 - part.shape[-1])) for part in (q, k, v))  # kernels want multiples of 8
    return F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)[..., :d]


def by_value(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Attention over [s v, s], whose first part is divided by its last."""
    d, weight = q.shape[-1], size.to(v.dtype)[:, None, :, None].expand(-1, v.shape[1], -1, -1)
    q, k, v = (
        F.pad(part, (0, d + 8 - part.shape[-1])) for part in (q, k, torch.cat([weight * v, weight], -1))
    )
    output = F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)
    return output[..., :d] / output[..., d : d + 1]


FORMS = {"mask": by_mask, "key": by_key, "value": by_value}


@torch.inference_mode()
def attention(
    device: torch.device, dtype: torch.dtype, batch: int, heads: int, n: int, rounds: int
) -> list[dict[str, Any]]:
    """Times of the forms of proportional attention beside plain attention, and their largest errors."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, heads, n, 64, generator=rng).to(device) for _ in range(3))
    size = torch.randint(1, 5, (batch, n), generator=rng).float().to(device)
    exact = (q @ k.mT * 64**-0.5 + size.log()[:, None, None]).softmax(-1) @ v
    low = [part.to(dtype) for part in (q, k, v)]
    runs: dict[str, Run] = {"plain": lambda: F.scaled_dot_product_attention(*low)}
    runs |= {name: partial(form, *low, size) for name, form in FORMS.items()}
    outputs = {name: run() for name, run in runs.items()}
    seconds = interleave(runs, rounds, device, least=0.005)
    rows = []
    for name in runs:
        error = "" if name == "plain" else f"largest error {(outputs[name].float() - exact).abs().max():.1e}"
        ratio = float(np.median(seconds["plain"] / seconds[name]))
        about = {"part": "attention", "model": f"{heads} heads, {n} tokens", "mode": name, "batch": batch}
        rows.append({**about, "ms": 1e3 * float(np.median(seconds[name])), "speedup": ratio, "note": error})
    return rows


def build_models(size: str, quick: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The dense model and its reduced ones."""
    backbone = copy.deepcopy(tiny_vit()) if quick else zoo.build(size)
    stages = {"stages": (2, 3)} if quick else {}
    models = {DENSE: backbone}
    for budget in (0.3,) if quick else (0.3, 0.4):
        for method in METHODS:
            models[f"{method} {budget:.0%}"] = tokred.reduce(backbone, method, budget, **stages)
    return {name: model.to(device, dtype).eval() for name, model in models.items()}


def measure(device: torch.device, quick: bool, seconds: float, rounds: int) -> pd.DataFrame:
    """All parts; with `quick` a tiny model and a few methods, in float32."""
    deadline, dtype = time.monotonic() + seconds, torch.float32 if quick else torch.bfloat16
    names = [name for name in registry.names() if not quick or name in METHODS]
    rows = battery(device, names)
    for batch, heads in ((2, 3),) if quick else ((1, 6), (64, 6), (256, 6), (64, 12)):
        try:
            rows += attention(device, dtype, batch, heads, 20 if quick else 139, rounds)
        except Exception as error:  # the models are timed all the same
            note = f"failed: {sentence(error)}"
            rows.append({"part": "attention", "model": f"{heads} heads", "batch": batch, "note": note})
    sizes, batches = (("tiny",), (1, 2)) if quick else (("deit_s", "deit_b"), (1, 64, 256))
    sets = {size: build_models(size, quick, device, dtype) for size in sizes}  # once: they count FLOPs
    for mode in ("eager",) if device.type != "cuda" else MODES:
        for size, models in sets.items():
            side = models[DENSE].patch_embed.img_size[0]
            for batch in batches:
                images = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
                rows += speeds(size, models, images, mode, rounds, deadline)
    columns = ["part", "model", "method", "mode", "batch", "ms", "speedup", "note"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small setting, for any device")
    parser.add_argument("--seconds", type=float, default=300, help="after which no further model is timed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("gpu.csv"))
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device; try the script with --device cpu --quick.")
    frame = measure(torch.device(options.device), options.quick, options.seconds, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.out, index=False, float_format="%.4g")
    print(frame.to_string(index=False, na_rep="", float_format="{:.3f}".format))
    if frame.note.str.startswith("failed").any():
        raise SystemExit("Some of this failed; the column note says why.")


if __name__ == "__main__":
    main()
