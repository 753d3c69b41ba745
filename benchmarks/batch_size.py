"""How much a comparison depends on its batch size: predictions that change against batches of 16, accuracy.

    python benchmarks/batch_size.py [--model deit_t] [--images 300] [--sizes 1,7,64]

In float32 logits agree to 1e-5 of the largest; what changes are near-ties, between classes or between tokens.
"""

from __future__ import annotations

import argparse

from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_t")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--sizes", default="1,7,64")
    options = parser.parse_args()
    found = {}
    for size in (16, *map(int, options.sizes.split(","))):
        job = Job(Config(model=options.model, limit=options.images, batch_size=size, precision="fp32"))
        job.run()
        found[size] = {"baseline": job.evaluation.dense, **job.evaluation.methods}
    sizes = " | ".join(f"batches of {size}" for size in list(found)[1:])
    print(f"| predictions of {options.images} that change | {sizes} |")
    print("| --- |" + " ---: |" * (len(found) - 1))
    for name, sixteen in found[16].items():
        changed = [
            int((sixteen.prediction != found[size][name].prediction).sum()) for size in list(found)[1:]
        ]
        print(f"| `{name}` | {' | '.join(map(str, changed))} |")


if __name__ == "__main__":
    main()
