"""Train a backbone on PhotoDigits by a `Recipe`, with checkpoints; measure it and write its weights and card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tokred.data import photodigits
from tokred.errors import TokredError
from tokred.models import tensor_files, zoo
from tokred.training import checkpoint
from tokred.training.backbone.images import TrainingImages
from tokred.training.backbone.init import initialize
from tokred.training.backbone.net2net import widen
from tokred.training.backbone.recipe import Recipe
from tokred.utils.provenance import versions


def features(model: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """Final features, prefix first, of images whose patches stand at the given positions [B, N] of the whole image."""
    prefix = model.pos_embed.shape[1] - model.patch_embed.num_patches
    # An embedding, not an index: the gradient of an index is summed by all threads in any order, and no run would repeat another.
    patches = model.patch_embed.proj(x).flatten(2).mT + F.embedding(prefix + tokens, model.pos_embed[0])
    cls = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    return model.norm(model.blocks(torch.cat([cls, patches], dim=1)))


class Trainer:
    """One run: a model, its optimiser and how far it is. `out` holds the checkpoint, then the weights and their card."""

    def __init__(
        self, recipe: Recipe, out: Path, precision: torch.dtype = torch.float32, workers: int = 1
    ) -> None:
        self.recipe, self.out, self.precision, self.workers = recipe, out, precision, workers
        self.model = zoo.build(recipe.model, photodigits.NUM_CLASSES)
        if not _trainable(self.model):
            raise TokredError(
                f"tokred train takes plain ViT and DeiT models with one CLS token, not {recipe.model}; try deit_t or deit_s."
            )
        self.normalize = Normalize(self.model)
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
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self.accuracy = 0.0  # running mean over recent batches

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            TokredError: it cannot be written.
        """
        state = {
            "model": self.model.state_dict(),
            "token_head": self.token_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
        }
        checkpoint.save(self.out / "checkpoint.pt", self.recipe.model_dump(), state)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one of this recipe.

        Raises:
            TokredError: the folder cannot be written or holds a run of another recipe, or the checkpoint cannot be read.
        """
        state = checkpoint.load(self.out / "checkpoint.pt", self.recipe.model_dump())
        if state is None:
            return False
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
        loader = DataLoader(
            TrainingImages(self.recipe, patch), size, sampler=indices, num_workers=self.workers
        )  # type: ignore[arg-type]
        return iter(loader)

    def _train_step(self, images: Tensor, labels: Tensor, targets: Tensor, tokens: Tensor) -> None:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self.recipe.lr_scale(self.step)
        with torch.autocast("cpu", dtype=self.precision, enabled=self.precision != torch.float32):
            feats = features(self.model, self.normalize(images), tokens)
            logits, token_logits = self.model.forward_head(feats), self.token_head(feats[:, 1:])
        loss = F.cross_entropy(logits.float(), labels)
        loss = loss + self.recipe.token_weight * F.cross_entropy(
            token_logits.float().flatten(0, 1), targets.flatten()
        )
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
            **versions(),
        }
        tensor_files.write_weights(self.model, path, card)
        shipped = zoo.load_file(self.recipe.model, path)  # what is measured is what the file holds
        for split in ("validation", "test"):
            card[f"{split}_top1"] = round(accuracy(shipped.model, split), 2)
        card["weights_hash"] = shipped.weights_hash
        tensor_files.write_weights(self.model, path, card)
        return path


def _trainable(model: Any) -> bool:
    """Whether `features` computes what the model does: a CLS token, learned positions, no norm before the blocks."""
    norms = (model.norm_pre, model.patch_embed.norm)
    plain = type(model).__name__ == "VisionTransformer" and all(
        isinstance(norm, nn.Identity) for norm in norms
    )
    return (
        plain
        and model.cls_token is not None
        and model.num_prefix_tokens == 1
        and model.pos_embed is not None
        and not model.no_embed_class
    )


class Normalize:
    """uint8 pixels [B, 3, H, W] to what a model expects: timm's mean and deviation, as `compare` uses them."""

    def __init__(self, model: Any) -> None:
        config = resolve_data_config({}, model=model)
        self.mean, self.std = (255 * torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


@torch.inference_mode()
def accuracy(model: Any, split: photodigits.Split, limit: int | None = None, batch_size: int = 50) -> float:
    """Top-1 on the first `limit` images of a fixed split, per cent."""
    model.eval()

    def pixels(image: Any) -> Tensor:
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    data = photodigits.PhotoDigits(split, transform=pixels, length=limit)
    normalize = Normalize(model)
    hits = sum(
        (model(normalize(images)).argmax(1) == labels).sum().item()
        for images, labels in DataLoader(data, batch_size)
    )
    return 100 * hits / len(data)


def _source(name: str) -> zoo.Loaded:
    path = Path(name)
    return zoo.load_file(path.stem, path) if path.suffix else zoo.load_shipped(name)
