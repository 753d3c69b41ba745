"""How pixels become the model's input: timm's evaluation transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.data import create_transform, resolve_data_config


@dataclass(frozen=True)
class Preparation:
    """timm's evaluation transform and the figures that tables print.

    Attributes:
        transform: PIL image to [3, H, W].
        img_size: side of the model's input in pixels.
        crop_pct: visible fraction of the resized image's side.
        interpolation: interpolation by which images are resized.
    """

    transform: Any
    img_size: int
    crop_pct: float
    interpolation: str

    def __str__(self) -> str:
        return f"{self.img_size} x {self.img_size} pixels, crop {self.crop_pct:g}, {self.interpolation}"


def data_config(model: Any) -> dict[str, Any]:
    """timm's data configuration of a model, at the model's size, which may not be that of its weights."""
    return dict(resolve_data_config({"input_size": (3, *model.patch_embed.img_size)}, model=model))


def prepare(model: Any, crop_pct: float | None = None, interpolation: str | None = None) -> Preparation:
    """timm's evaluation transform of a model; `crop_pct` and `interpolation` replace the model's own."""
    chosen = {"crop_pct": crop_pct, "interpolation": interpolation}
    config = data_config(model) | {name: value for name, value in chosen.items() if value is not None}
    return Preparation(
        transform=create_transform(**config),
        img_size=int(config["input_size"][-1]),
        crop_pct=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
    )
