"""What one pass over the data saves: M methods together against M comparisons of one each, and a sweep.

    python benchmarks/comparisons.py [--model deit_t] [--images 96] [--rounds 3]

Times are those of evaluation alone, on the same images, in turns, in one process; the figure is the median
of the rounds' ratios. Beside it stands what FLOPs predict: a pass costs the dense model once and, of each
method, what comes after the site at which it begins. Memory is the largest resident set of a process that
does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tokred.core import registry
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config
from tokred.evaluation.predictions import Evaluation

CORE = ("lotm", "tome", "kmedoids", "dpcknn", "patchmerger", "sinkhorn", "sit", "topk", "evit", "dynamicvit")
SWEPT = tuple(round(0.1 + 0.05 * i, 2) for i in range(7))


def job(options: argparse.Namespace, methods: tuple[str, ...], budgets: tuple[float, ...] = (0.3,)) -> Job:
    return Job(
        Config(model=options.model, methods=methods, budgets=budgets, limit=options.images, precision="fp32")
    )


def seconds(prepared: Job) -> float:
    """Of one evaluation, from nothing."""
    prepared = copy.copy(prepared)
    prepared.evaluation = Evaluation.empty(len(prepared.source), prepared.models)
    start = time.perf_counter()
    prepared.run()
    return time.perf_counter() - start


def flops(prepared: Job) -> float:
    """Of one image, in dense passes."""
    costs, total = prepared.costs, float(prepared.costs.dense)
    for entry in prepared.entries:
        if entry.match is not None and entry.model is not None:
            shared = costs.embedding + sum(
                costs.part(part, layer, costs.n) for part, layer in costs.segments(entry.match.plan)[0]
            )
            total += entry.match.flops - shared
    return total / costs.dense


def compare(label: str, together: Job, alone: list[Job], rounds: int) -> None:
    for prepared in (together, alone[0]):
        seconds(prepared)  # warm up
    ratios = []
    for turn in range(rounds):
        first, second = (together, alone) if turn % 2 == 0 else (alone, together)
        times = [sum(map(seconds, jobs if isinstance(jobs, list) else [jobs])) for jobs in (first, second)]
        one, many = times if turn % 2 == 0 else reversed(times)
        ratios.append(one / many)
    predicted = flops(together) / sum(map(flops, alone))
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(
        f"| {label} | {statistics.median(ratios):.3f} ({spread}) | {predicted:.3f} | 1 : {len(alone)} |",
        flush=True,
    )


def memory(options: argparse.Namespace, methods: int, budgets: int) -> float:
    """Largest resident set of an evaluation of so many methods, MB."""
    arguments = [f"--model={options.model}", f"--images={options.images}", f"--only={methods},{budgets}"]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_t")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        methods, budgets = map(int, options.only.split(","))
        seconds(job(options, CORE[:methods], SWEPT[:budgets] if budgets > 1 else (0.3,)))
        status = Path(
            "/proc/self/status"
        ).read_text()  # Linux; getrusage would tell of the process that started this one
        print(int(status.split("VmHWM:")[1].split()[0]) / 1000)
        return
    assert set(CORE) <= set(registry.names())
    print(
        "| compared | time of one pass / of separate ones | predicted by FLOPs | images decoded |\n"
        "| --- | ---: | ---: | ---: |"
    )
    single = {name: job(options, (name,)) for name in CORE}
    for count in (1, 4, 10):
        names = CORE[:count]
        compare(
            f"{count} methods at 30 %", job(options, names), [single[name] for name in names], options.rounds
        )
    alone = [job(options, CORE[:4], (budget,)) for budget in SWEPT]
    compare("sweep: 4 methods at 7 budgets", job(options, CORE[:4], SWEPT), alone, options.rounds)
    print("\n| methods and budgets | largest resident set (MB) |\n| --- | ---: |")
    for methods, budgets in ((1, 1), (4, 1), (10, 1), (10, 7)):
        print(f"| {methods} x {budgets} | {memory(options, methods, budgets):.0f} |", flush=True)


if __name__ == "__main__":
    main()
