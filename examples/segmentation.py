"""Dense features: a linear head on frozen features of reduced models labels the patches of PhotoDigits.

python examples/segmentation.py [--model deit_t] [--budget 0.3] [--train 200] [--test 100] [--out FILE.png]

Each patch of an image shows one of ten digits or background. For the dense model and each method, a linear
classifier is trained on the features of the last layer on the full grid of patches, and its mean
intersection over union (mIoU) on test images is printed beside the GFLOPs of the backbone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

import tokred
from tokred.core.costs import CostTable
from tokred.core.vit import ReducedViT
from tokred.data import photodigits, preprocessing
from tokred.models import zoo

METHODS = ("lotm", "tome", "kmedoids", "topk")
CLASSES = photodigits.NUM_CLASSES + 1  # the last is background
BATCH, SHOWN = 20, 3


def load(split: photodigits.Split, count: int, transform, grid: int) -> tuple[Tensor, Tensor]:
    """Prepared images [n, 3, H, W] of PhotoDigits, and the class of each patch [n, grid, grid]."""
    images, targets = [], []
    for index in range(count):
        image, mask, label, _ = photodigits.render(split, 0, index)
        images.append(transform(image))
        targets.append(torch.from_numpy(photodigits.token_targets(mask, label, grid)))
    return torch.stack(images), torch.stack(targets).unflatten(1, (grid, grid))


@torch.no_grad()
def features(model: ReducedViT, images: Tensor) -> Tensor:
    """Normalised features of the last layer on the grid of patches, [n, grid, grid, D]."""
    parts = [
        model.forward_intermediates(part, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[0]
        for part in images.split(BATCH)
    ]
    return torch.cat(parts).movedim(1, -1).contiguous()


def train_head(x: Tensor, targets: Tensor, steps: int = 40) -> torch.nn.Linear:
    """A linear classifier of patches, by L-BFGS on the cross-entropy, from weights of zero."""
    head = torch.nn.Linear(x.shape[-1], CLASSES)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x).flatten(0, 2), targets.flatten()) + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head


def mean_iou(predicted: Tensor, targets: Tensor) -> float:
    """Mean over classes that occur of intersection over union, in per cent."""
    shares = []
    for label in range(CLASSES):
        here, there = predicted == label, targets == label
        if (union := (here | there).sum()) > 0:
            shares.append(float((here & there).sum() / union))
    return 100 * float(np.mean(shares))


def draw(images: Tensor, maps: dict[str, Tensor], path: Path) -> None:
    """One row for each image: the image, and a map of patch classes for each model."""
    figure = Figure(figsize=(1.9 * (len(maps) + 1), 1.9 * len(images) + 0.5), layout="constrained")
    axes = figure.subplots(len(images), len(maps) + 1, squeeze=False)
    low, high = images.amin(), images.amax()
    for row, image in enumerate(images):
        axes[row, 0].imshow(((image - low) / (high - low)).permute(1, 2, 0))
        for column, labels in enumerate(maps.values(), start=1):
            axes[row, column].imshow(labels[row], cmap="tab20", vmin=0, vmax=19)
    for column, name in enumerate(["image", *maps]):
        axes[0, column].set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="deit_t")
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("segmentation.png"))
    arguments = parser.parse_args()

    backbone = zoo.load_shipped(arguments.model).model
    costs, transform = CostTable(backbone), preprocessing.prepare(backbone, crop_pct=1.0).transform
    grid = backbone.patch_embed.grid_size[0]
    images, targets = load("train", arguments.train, transform, grid)
    test_images, test_targets = load("test", arguments.test, transform, grid)
    models = {"dense": ReducedViT(backbone)}
    models |= {name: tokred.reduce(backbone, name, arguments.budget) for name in METHODS}
    maps = {"truth": test_targets[:SHOWN]}
    print(f"{'model':10s} {'GFLOPs':>7s} {'mIoU':>6s}")
    for name, model in models.items():
        head = train_head(features(model, images), targets)
        with torch.no_grad():
            predicted = head(features(model, test_images)).argmax(-1)
        flops = costs.plan(model.plan)
        miou = mean_iou(predicted, test_targets)
        maps[f"{name}\n{flops / 1e9:.3f} GFLOPs, {miou:.1f} %"] = predicted[:SHOWN]
        print(f"{name:10s} {flops / 1e9:7.3f} {miou:6.2f}", flush=True)
    draw(test_images[:SHOWN], maps, arguments.out)


if __name__ == "__main__":
    main()
