"""Which methods export to ONNX with a dynamic batch, and how far the file is from the model.

    python benchmarks/exports.py [METHOD ...]

Every method with fixed counts, or those that are named, reduces a tiny ViT with random weights. onnxruntime
runs its file with one and with three images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import tokred
from tokred.core import registry
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation.export_check import load
from tokred.testing import tiny_vit


@torch.no_grad()
def difference(model: ReducedViT, path: Path) -> float:
    """The largest difference between logits of a model and of its file."""
    run = load(tokred.export(model, path, dynamic_batch=True), "onnx")
    batches = [torch.randn(count, 3, 48, 48) for count in (1, 3)]
    return max(float((run(images) - model(images)).abs().max()) for images in batches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="by default all with fixed counts")
    names = parser.parse_args().methods or registry.names()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if registry.get(name).adaptive():
                continue
            model = ReducedViT(tiny_vit(depth=2), Plan(name, (2,), (24,))).eval()
            try:
                result = f"{difference(model, Path(folder) / f'{name}.onnx'):.0e}"
            except TokredError as error:
                result = str(error)
            print(f"{name:12s} {result}", flush=True)


if __name__ == "__main__":
    main()
