"""Training a backbone on PhotoDigits by a `Recipe`, and writing its weights and their card."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
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
from tokred.models.residual import scale_residual
from tokred.training.backbone.images import TrainingImages
from tokred.training.backbone.init import initialize
from tokred.training.backbone.net2net import widen
from tokred.training.backbone.recipe import Recipe
from tokred.training.loop import TrainingRun
from tokred.utils.devices import autocast
from tokred.utils.provenance import versions


def features(model: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """Final features [B, 1 + N, C] of image windows, CLS token first.

    Args:
        model: a plain ViT with a CLS token.
        x: normalised pixels of the windows, [B, 3, H, W].
        tokens: positions of the windows' patches in the whole image, [B, N].
    """
    prefix = model.pos_embed.shape[1] - model.patch_embed.num_patches
    # An embedding, not an index: threads sum the gradient of an index in any order, so runs would differ.
    patches = model.patch_embed.proj(x).flatten(2).mT + F.embedding(prefix + tokens, model.pos_embed[0])
    cls = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    return model.norm(model.blocks(torch.cat([cls, patches], dim=1)))


class Trainer(TrainingRun):
    """A run that trains a backbone.

    Args:
        recipe: the recipe.
        out: folder of the checkpoint and of the final weights and their card.
        precision: dtype of matrix products.
        workers: number of processes that draw images.

    Raises:
        TokredError: the model is not a plain ViT with one CLS token.
    """

    def __init__(
        self, recipe: Recipe, out: Path, precision: torch.dtype = torch.float32, workers: int = 1
    ) -> None:
        super().__init__(out)
        self.recipe, self.precision, self.workers = recipe, precision, workers
        self.model = zoo.build(recipe.model, photodigits.NUM_CLASSES)
        if not _trainable(self.model):
            raise TokredError(
                "tokred train takes plain ViT and DeiT models with one CLS token, "
                f"not {recipe.model}; try deit_t or deit_s."
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
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))
        self.accuracy = 0.0  # running mean over recent batches

    @property
    def identity(self) -> dict[str, Any]:
        return self.recipe.model_dump()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "token_head": self.token_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "accuracy": self.accuracy,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in ("model", "token_head", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.accuracy = state["accuracy"]

    def batches(self) -> Iterable[Any]:
        size = self.recipe.batch_size
        # Each batch is one step, so all its images have the same size.
        return DataLoader(
            TrainingImages(self.recipe, self.model.patch_embed.patch_size[0]),
            size,
            sampler=range(self.step * size, self.recipe.steps * size),  # type: ignore[arg-type]
            num_workers=self.workers,
        )

    def learn(self, batch: Any) -> None:
        images, labels, targets, tokens = batch
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self.recipe.lr_scale(self.step)
        with autocast(self.device, self.precision):
            feats = features(self.model, self.normalize(images), tokens)
            logits, token_logits = self.model.forward_head(feats), self.token_head(feats[:, 1:])
        loss = F.cross_entropy(logits.float(), labels)
        of_tokens = F.cross_entropy(token_logits.float().flatten(0, 1), targets.flatten())
        loss = loss + self.recipe.token_weight * of_tokens
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        hits = (logits.argmax(1) == labels).float().mean().item()
        self.accuracy += (hits - self.accuracy) * max(0.02, 1 / (self.step + 1))

    def finish(self, command: str) -> Path:
        """Measure the trained model, write its float16 weights and their card, and return the path."""
        path = self.out / f"{self.recipe.model}.safetensors"
        weights = copy.deepcopy(self.model)
        scale_residual(weights, self.recipe.residual_scale)
        card = {
            "model": self.recipe.model,
            "command": command,
            "recipe": self.recipe.model_dump(),
            "residual_scale": self.recipe.residual_scale,
            "images_seen": self.step * self.recipe.batch_size,
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "precision": str(self.precision).removeprefix("torch."),
            **versions(),
        }
        tensor_files.write_tensors(weights.state_dict(), path, card)
        shipped = zoo.load_file(self.recipe.model, path)  # the accuracy is that of the stored weights
        for split in ("validation", "test"):
            card[f"{split}_top1"] = round(accuracy(shipped.model, split), 2)
        card["weights_hash"] = shipped.weights_hash
        tensor_files.write_tensors(weights.state_dict(), path, card)
        return path


def _trainable(model: Any) -> bool:
    """Whether `features` supports the model: a CLS token, learned positions, no norm before the blocks."""
    norms = (model.norm_pre, model.patch_embed.norm)
    return (
        type(model).__name__ == "VisionTransformer"
        and all(isinstance(norm, nn.Identity) for norm in norms)
        and model.cls_token is not None
        and model.num_prefix_tokens == 1
        and model.pos_embed is not None
        and not model.no_embed_class
    )


class Normalize:
    """Normalises uint8 pixels [B, 3, H, W] by the model's mean and standard deviation, as `compare` does."""

    def __init__(self, model: Any) -> None:
        config = resolve_data_config({}, model=model)
        self.mean, self.std = (255 * torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


@torch.inference_mode()
def accuracy(model: Any, split: photodigits.Split, limit: int | None = None) -> float:
    """Top-1 in per cent on the first `limit` images of a split."""
    model.eval()

    def pixels(image: Any) -> Tensor:
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    data = photodigits.PhotoDigits(split, transform=pixels, length=limit)
    normalize = Normalize(model)
    hits = sum(
        (model(normalize(images)).argmax(1) == labels).sum().item()
        for images, labels in DataLoader(data, batch_size=50)
    )
    return 100 * hits / len(data)


def _source(name: str) -> zoo.Loaded:
    """Weights at the scale of the residual stream at which they were trained."""
    path = Path(name)
    loaded = zoo.load_file(path.stem, path) if path.suffix else zoo.load_shipped(name)
    scale_residual(loaded.model, 1 / loaded.card.get("residual_scale", 1.0))
    return loaded
