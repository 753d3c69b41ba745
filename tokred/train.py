"""Train a backbone on PhotoDigits: the recipe behind the shipped weights.

From scratch, at full difficulty, a small ViT learns nothing here for a long time. Four things make training short enough for two
processor cores: a curriculum (large white digits on black, raised to the benchmark's difficulty); a window of a quarter of the
image around the digit for most images, at the scale and with the position embeddings that these tokens have in the whole image; a second
target on every patch token (which digit covers it, or none); and a start in which queries match keys and the value path resembles
the identity (after Trockman and Kolter, 2023, "Mimetic initialization of self-attention layers").
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tokred import __version__, zoo
from tokred.data import photodigits
from tokred.errors import TokredError
from tokred.grow import widen

WINDOW = 7  # tokens on a side of a window: the digit always fits


class Recipe(BaseModel):
    """Everything that decides the trained weights. Shares are of `images`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "deit_t"
    images: int = Field(100_000, gt=0)
    batch_size: int = Field(32, gt=0)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    cycles: int = Field(1, ge=1)  # of the learning rate: warm restarts after Loshchilov and Hutter, 2017
    warmup: float = Field(0.02, ge=0, le=1)  # share of each cycle
    curriculum: float = Field(0.2, ge=0, le=1)  # share over which the difficulty rises to the benchmark's
    whole_every: int = Field(12, ge=1)  # after the curriculum, every so many batches show whole images
    whole_last: float = Field(0.04, ge=0, le=1)  # and all batches of this last share of each cycle
    token_weight: float = Field(1.0, ge=0)  # weight of the per-token target
    clip: float = Field(1.0, gt=0)  # gradient norm
    grow_from: str | None = None  # a narrower model with shipped weights, or a weight file, to widen and start from
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch_size)

    def whole(self, step: int) -> bool:
        """Whether a step shows whole images instead of windows."""
        if step < self.curriculum * self.steps:
            return False
        return step % self.whole_every == 0 or self._in_cycle(step) >= 1 - self.whole_last

    def ease(self, step: int) -> float:
        """How much easier than the benchmark the images of one step are, from 1 to 0."""
        return max(0.0, 1.0 - step / (self.curriculum * self.steps)) if self.curriculum else 0.0

    def lr_scale(self, step: int) -> float:
        """In each cycle a linear warm-up, then a half cosine to zero."""
        done, first = self._in_cycle(step), self.cycles / self.steps
        if done < self.warmup:
            return (done + first) / (self.warmup + first)
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / max(first, 1 - self.warmup)))

    def _in_cycle(self, step: int) -> float:
        """How much of its learning-rate cycle is done before a step, from 0 to 1."""
        return step * self.cycles / self.steps % 1


class TrainingImages(Dataset[tuple[Tensor, int, Tensor, Tensor]]):
    """Image `i` of a run: (uint8 [3, S, S], label, token targets [N], positions of the tokens in the whole image [N])."""

    def __init__(self, recipe: Recipe, patch: int) -> None:
        self.recipe, self.patch, self.grid = recipe, patch, photodigits.SIZE // patch

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor, Tensor]:
        step = index // self.recipe.batch_size
        image, mask, label, _ = photodigits.render("train", self.recipe.seed, index, ease=self.recipe.ease(step))
        targets = photodigits.token_targets(mask, label, self.grid)
        side = self.grid if self.recipe.whole(step) else min(WINDOW, self.grid)
        row, column = _window_origin(mask, self.patch, self.grid, side, np.random.RandomState([self.recipe.seed, index]))
        tokens = (np.arange(row, row + side)[:, None] * self.grid + np.arange(column, column + side)).reshape(-1)
        p = self.patch
        pixels = np.asarray(image)[row * p : (row + side) * p, column * p : (column + side) * p].transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy()), label, torch.from_numpy(targets[tokens]), torch.from_numpy(tokens)


def _window_origin(mask: Any, patch: int, grid: int, side: int, rng: np.random.RandomState) -> tuple[int, int]:
    """Row and column of the first token of a random window that holds as much of the ink as fits."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    origin = []
    for low, high in ((top, bottom), (left, right)):
        first, last = low // patch, -(-high // patch)
        least, most = max(0, last - side), min(grid - side, first)
        origin.append(rng.randint(least, most + 1) if least <= most else max(0, min(grid - side, (first + last - side) // 2)))
    return origin[0], origin[1]


def features(model: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """Final features, prefix first, of images whose patches stand at the given positions [B, N] of the whole image."""
    prefix = model.pos_embed.shape[1] - model.patch_embed.num_patches
    patches = model.patch_embed.proj(x).flatten(2).mT + model.pos_embed[0, prefix + tokens]
    cls = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    return model.norm(model.blocks(torch.cat([cls, patches], dim=1)))


def sincos_position(grid: int, dim: int) -> Tensor:
    """Fixed two-dimensional sine-cosine position embedding, [grid * grid, dim] (as in MoCo v3)."""
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def initialize(model: Any, rng: torch.Generator) -> None:
    """Sine-cosine positions; query-key and value-projection products near the identity; the rest as timm draws it, from `rng`."""
    dim, grid = model.embed_dim, model.patch_embed.grid_size[0]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=rng))
            if module.bias is not None:
                module.bias.zero_()
    model.cls_token.copy_(1e-6 * torch.randn(model.cls_token.shape, generator=rng))
    model.pos_embed[:, : -grid * grid].zero_()
    model.pos_embed[:, -grid * grid :].copy_(0.1 * sincos_position(grid, dim))
    fan_in = model.patch_embed.proj.weight[0].numel()
    model.patch_embed.proj.weight.copy_(fan_in**-0.5 * torch.randn(model.patch_embed.proj.weight.shape, generator=rng))
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        q.copy_(torch.randn(q.shape, generator=rng) * dim**-0.5)
        k.copy_(0.7 * q + 0.7 * torch.randn(k.shape, generator=rng) * dim**-0.5)
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=rng))[0]
        v.copy_(0.6 * basis + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)
        block.attn.proj.weight.copy_(0.6 * basis.T + 0.2 * torch.randn(dim, dim, generator=rng) * dim**-0.5)


class Trainer:
    """One run: a model, its optimiser and how far it is. `out` holds the checkpoint, then the weights and their card."""

    def __init__(self, recipe: Recipe, out: Path, precision: torch.dtype = torch.float32, workers: int = 1) -> None:
        self.recipe, self.out, self.precision, self.workers = recipe, out, precision, workers
        self.model = zoo.build(recipe.model, photodigits.NUM_CLASSES)
        if type(self.model).__name__ != "VisionTransformer" or self.model.num_prefix_tokens != 1:
            raise TokredError(f"tokred train takes ViT and DeiT models with one CLS token, not {recipe.model}; try deit_t or deit_s.")
        rng = torch.Generator().manual_seed(recipe.seed)
        self.token_head = nn.Linear(self.model.embed_dim, photodigits.NUM_CLASSES + 1)
        with torch.no_grad():
            self.token_head.weight.copy_(0.02 * torch.randn(self.token_head.weight.shape, generator=rng))
            self.token_head.bias.zero_()
        initialize(self.model, rng)
        if recipe.grow_from:
            widen(_source(recipe.grow_from).model, self.model, rng)
        self.parameters = [*self.model.parameters(), *self.token_head.parameters()]
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self.accuracy = 0.0  # running mean over recent batches

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint in one step."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": self.recipe.model_dump(),
            "model": self.model.state_dict(),
            "token_head": self.token_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one of this recipe.

        Raises:
            TokredError: the folder holds a run of another recipe, or the checkpoint cannot be read.
        """
        if not self.checkpoint.exists():
            return False
        try:
            state = torch.load(self.checkpoint, weights_only=True)
        except Exception as error:
            raise TokredError(f"The checkpoint {self.checkpoint} cannot be read; delete it to start anew.") from error
        if state["recipe"] != self.recipe.model_dump():
            changed = [key for key, value in self.recipe.model_dump().items() if state["recipe"].get(key) != value]
            raise TokredError(f"{self.out} holds a run with another {', '.join(changed)}; give another --out, or delete it.")
        self.model.load_state_dict(state["model"])
        self.token_head.load_state_dict(state["token_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.accuracy = state["step"], state["seconds"], state["accuracy"]
        return True

    def run(self, progress: Callable[[Trainer], None], interval: float = 60.0) -> None:
        """Train to the end, calling `progress` after every step and saving every `interval` seconds and when interrupted."""
        last_save = start = time.monotonic()
        before = self.seconds
        try:
            for images, labels, targets, tokens in self._batches():
                self._train_step(images, labels, targets, tokens)
                now = time.monotonic()
                self.seconds = before + now - start
                if now - last_save > interval:
                    self.save()
                    last_save = now
                progress(self)
        finally:
            self.save()

    def _batches(self) -> Iterator[Any]:
        size = self.recipe.batch_size
        indices = range(self.step * size, self.recipe.steps * size)
        patch = self.model.patch_embed.patch_size[0]
        # Every batch lies within one step, so all its images have one size.
        loader = DataLoader(TrainingImages(self.recipe, patch), size, sampler=indices, num_workers=self.workers)  # type: ignore[arg-type]
        return iter(loader)

    def _train_step(self, images: Tensor, labels: Tensor, targets: Tensor, tokens: Tensor) -> None:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self.recipe.lr_scale(self.step)
        with torch.autocast("cpu", dtype=self.precision, enabled=self.precision != torch.float32):
            feats = features(self.model, normalize(images), tokens)
            logits, token_logits = self.model.forward_head(feats), self.token_head(feats[:, 1:])
        loss = F.cross_entropy(logits.float(), labels)
        loss = loss + self.recipe.token_weight * F.cross_entropy(token_logits.float().flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        hits = (logits.argmax(1) == labels).float().mean().item()
        self.accuracy += (hits - self.accuracy) * max(0.02, 1 / (self.step + 1))
        self.step += 1

    def finish(self, command: str) -> Path:
        """Measure the trained model, write its float16 weights and their card, and return the path."""
        path = self.out / f"{self.recipe.model}.safetensors"
        card = {
            "model": self.recipe.model,
            "command": command,
            "recipe": self.recipe.model_dump(),
            "images_seen": self.step * self.recipe.batch_size,
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "precision": str(self.precision).removeprefix("torch."),
            "tokred": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "date": datetime.now(timezone.utc).date().isoformat(),
        }
        zoo.write_weights(self.model, path, card)
        shipped = zoo.load_file(self.recipe.model, path)  # what is measured is what the file holds
        for split in ("validation", "test"):
            card[f"{split}_top1"] = round(accuracy(shipped.model, split), 2)
        card["weights_hash"] = shipped.weights_hash
        zoo.write_weights(self.model, path, card)
        return path


def normalize(images: Tensor) -> Tensor:
    """uint8 pixels [B, 3, H, W] to what the models expect (ImageNet's mean and deviation)."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1) * 255
    return (images.float() - mean) / std


@torch.inference_mode()
def accuracy(model: Any, split: photodigits.Split, limit: int | None = None, batch_size: int = 50) -> float:
    """Top-1 on the first `limit` images of a fixed split, per cent."""
    model.eval()

    def pixels(image: Any) -> Tensor:
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    data = photodigits.PhotoDigits(split, transform=pixels, length=limit)
    hits = sum((model(normalize(images)).argmax(1) == labels).sum().item() for images, labels in DataLoader(data, batch_size))
    return 100 * hits / len(data)


def _source(name: str) -> zoo.Loaded:
    path = Path(name)
    return zoo.load_file(path.stem, path) if path.suffix else zoo.load_shipped(name)
