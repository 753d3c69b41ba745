"""Share of the promised speed-up in processor time on one thread, for machines that are never quiet.

python benchmarks/share.py [--model deit_s] [--budget 0.3] [--batch-size 16] [--rounds 4]

Other processes do not count, but still take their share of caches and memory bandwidth. `tokred bench` is the
measurement of record.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import match_each
from tokred.core.vit import ReducedViT
from tokred.models import zoo


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense = zoo.build(options.model)
    matches, _ = match_each(CostTable(dense), registry.names(), options.budget)
    runs = {"dense": dense, **{name: ReducedViT(dense, found.plan).eval() for name, found in matches.items()}}
    images = torch.randn(
        options.batch_size, 3, *dense.patch_embed.img_size, generator=torch.Generator().manual_seed(0)
    )
    taken = {name: np.empty(options.rounds + 1) for name in runs}
    for index in range(options.rounds + 1):  # the first one warms up
        for name, run in runs.items():
            start = time.thread_time()
            run(images)
            taken[name][index] = time.thread_time() - start
    for name, found in matches.items():
        speedup = np.median(taken["dense"][1:] / taken[name][1:])
        print(f"{name:12s} speed-up {speedup:.3f}, {speedup * (1 - found.reduction):.1%} of the promise")


if __name__ == "__main__":
    main()
