"""Each reducer's own time and memory against the number of tokens, with fitted exponents.

python benchmarks/scaling.py [--rounds 7] [--out benchmarks/scaling]    # writes scaling.csv and scaling.svg

Batches hold as many images as make 16,384 tokens, so that small images do not measure the start of operators;
figures are for one image. The exponent is the slope of log(time) over log(tokens), by least squares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from stages import METHODS, kept, stage, state

from tokred.evaluation.timing import WARM_UP, interleave, peak_bytes

TOKENS = (196, 576, 1024, 4096)
TOGETHER = 16_384


@torch.inference_mode()
def measure(rounds: int) -> pd.DataFrame:
    rows, device = [], torch.device("cpu")
    for n in TOKENS:
        batch = TOGETHER // n
        tokens = state(batch, n)
        stages = {name: stage(name, n, kept(name, n)) for name in METHODS}
        runs = {name: lambda made=made, tokens=tokens: made(tokens) for name, made in stages.items()}
        peaks = {}
        for name, run in runs.items():
            for _ in range(WARM_UP):
                run()
            peaks[name] = peak_bytes(run, device)
        for name, seconds in interleave(runs, rounds, device).items():
            figures = {"ms": 1e3 * np.median(seconds) / batch, "peak_mb": peaks[name] / 1e6 / batch}
            rows.append({"method": name, "tokens": n, "batch": batch, **figures})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def exponent(tokens: np.ndarray, values: np.ndarray) -> float:
    """Slope of log(values) over log(tokens)."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def fits(frame: pd.DataFrame) -> pd.DataFrame:
    """Exponents of time and memory, over all token counts and between the two largest."""
    rows = []
    for name, part in frame.groupby("method", sort=False):
        part = part.sort_values("tokens")
        n = part.tokens.to_numpy()
        row = {"method": name}
        for column in ("ms", "peak_mb"):
            values = part[column].to_numpy()
            row |= {
                f"{column}_exponent": exponent(n, values),
                f"{column}_exponent_last": exponent(n[-2:], values[-2:]),
            }
        rows.append(row)
    return pd.DataFrame(rows).round(2)


def plot(frame: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "tokred", "svg.fonttype": "none"}
    )  # the same file from the same figures, and a small one
    from matplotlib import pyplot as plt

    slopes = fits(frame).set_index("method")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for axis, column, label in zip(
        axes, ("ms", "peak_mb"), ("time of one image (ms)", "peak memory of one image (MB)"), strict=True
    ):
        for name, part in frame.groupby("method", sort=False):
            axis.loglog(
                part.tokens,
                part[column],
                marker="o",
                markersize=4,
                label=f"{name} ({slopes.loc[name, f'{column}_exponent']:.2f})",
            )
        axis.set(xlabel="tokens", ylabel=label, xticks=TOKENS, xticklabels=map(str, TOKENS))
        axis.minorticks_off()
        axis.legend(fontsize=8, title="exponent", title_fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "scaling", help="path without ending"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    frame = measure(options.rounds)
    frame.round(4).to_csv(options.out.with_suffix(".csv"), index=False)
    print(fits(frame).to_string(index=False))
    plot(frame, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
