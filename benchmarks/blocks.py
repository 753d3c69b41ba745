"""Each reducer's own time, in units of one unreduced DeiT-S block, both at [16, 197, 384] and in turns.

python benchmarks/blocks.py [--rounds 31] [--threads 2] [--profile METHOD] [--out benchmarks/blocks.csv]
"""

from __future__ import annotations

import argparse

import pandas as pd
import timm
import torch
from rich.console import Console
from stages import METHODS, kept, stage, state

from tokred.evaluation.timing import WARM_UP, interleave, median_interval

BATCH, TOKENS = 16, 196


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--profile", metavar="METHOD", help="print where this reducer's time goes, and nothing else"
    )
    parser.add_argument("--out", help="CSV file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    tokens = state(BATCH, TOKENS, device=device)
    block = timm.create_model("deit_small_patch16_224").blocks[3].eval().to(device)
    stages = {name: stage(name, TOKENS, kept(name, TOKENS)).to(device) for name in METHODS}
    runs = {
        "block": lambda: block(tokens.x),
        **{name: lambda made=made: made(tokens) for name, made in stages.items()},
    }
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    if options.profile:
        with torch.profiler.profile() as profiler:
            for _ in range(10):
                runs[options.profile]()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))
        return
    taken = interleave(runs, options.rounds, device, least=0.02)
    rows = []
    for name in METHODS:
        blocks = median_interval(taken[name] / taken["block"])
        figures = {"blocks": blocks.median, "low": blocks.low, "high": blocks.high}
        rows.append(
            {
                "method": name,
                "tokens": TOKENS,
                "keep": kept(name, TOKENS),
                **figures,
                "threads": torch.get_num_threads(),
            }
        )
    frame = pd.DataFrame(rows).round(4)
    Console().print(frame.to_string(index=False))
    if options.out:
        frame.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
