"""PhotoDigits: the embedded benchmark, made from what scikit-learn ships, so nothing is downloaded.

Real handwritten digits (`sklearn.datasets.load_digits`, 1,797 images of 8 x 8) are drawn in light ink, at a
random place, scale and rotation, over random crops of two real photographs (`load_sample_images`). Ten
classes, a natural background, an object that covers a fraction of the tokens: the situation that token
reduction is made for.

Digits are split by index, so training, validation and test never share a digit. Both photographs serve every
split. Every image is a function of (split, seed, index) alone: its parameters come from one `RandomState`,
whose streams NumPy froze, and its pixels from Pillow's fixed-point operations, so the test split has one hash
on every machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

Split = Literal["train", "validation", "test"]

NUM_CLASSES = 10
SIZE = 224
SPLIT_IMAGES = {"validation": 500, "test": 1000}
#: SHA-256 over the pixels and labels of the fixed splits at 224 px; `PhotoDigits.pixel_hash` recomputes them.
SPLIT_HASHES = {
    "validation": "43fa21a2abab146996b1d456122a15663d77661671f29925766ca412531e5362",
    "test": "ad05f4b4836ad7b045d19efd030881560dd5f51abc6c3158d7e7bcd1ea85c762",
}
#: The same over the first images only, to notice libraries that draw otherwise before every run.
PROBE_IMAGES = 8
PROBE_HASHES = {
    "validation": "dba6ade51243cef1dbd79a56049d03ec34fc9eeac35f8e881480c927fb79777b",
    "test": "cac25598f81b329be8f12700bb2e6f7536dbb05449b4d885ce57c0f5379e089b",
}

_SPLIT_IDS = {"train": 0, "validation": 1, "test": 2}
_RESIDUES = {"train": (1, 2, 3, 5, 6, 8), "validation": (7,), "test": (0, 4)}  # digit index modulo 9
_GLYPH = 32  # digits are enlarged once from 8 x 8 to this side, then warped
_BORDER = 4  # and one empty pixel of the original around it, so that strokes fade to nothing
_BACKGROUND = NUM_CLASSES  # token target of a patch without ink
_COVERED = 0.15  # share of a patch that ink covers in a token of the digit


@dataclass(frozen=True)
class Scene:
    """Where one digit lies in one image. Lengths are fractions of the image's side, angles are degrees."""

    photo: int
    crop: tuple[float, float, float]  # left, top, side as fractions of what the photograph allows
    mirror: bool
    gain: float  # brightness of the photograph
    ink: tuple[int, int, int]
    side: float
    center: tuple[float, float]
    angle: float

    @classmethod
    def draw(cls, rng: np.random.RandomState, ease: float) -> Scene:
        """One scene from 13 uniform draws.

        `ease` 1 is a large, centred, upright white digit on black; 0 is the benchmark.
        """
        u = rng.random_sample(13)
        hard = 1.0 - ease
        side = (0.28 + 0.22 * u[5]) * hard + (0.46 + 0.04 * u[5]) * ease
        slack = max(0.0, 1.0 - side) * hard
        return cls(
            photo=int(u[0] * 2),
            crop=(u[1], u[2], 0.35 + 0.55 * u[3]),
            mirror=bool(u[4] < 0.5),
            gain=(0.35 + 0.35 * u[6]) * hard,
            ink=tuple(int(255 - 45 * hard * v) for v in u[9:12]),  # type: ignore[arg-type]
            side=side,
            center=(0.5 + slack * (u[7] - 0.5), 0.5 + slack * (u[8] - 0.5)),
            angle=40.0 * hard * (u[12] - 0.5),
        )


@lru_cache(maxsize=1)
def _photos() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(photo) for photo in load_sample_images().images)


@lru_cache(maxsize=1)
def _glyphs() -> tuple[list[Image.Image], np.ndarray]:
    """Every digit, enlarged and bordered, and its label."""
    from sklearn.datasets import load_digits

    data = load_digits()
    solid = [min(255, round(1.4 * v)) for v in range(256)]  # of strokes
    glyphs = []
    for image in data.images:
        small = Image.fromarray(np.pad((image * (255 / 16)).astype(np.uint8), 1))
        glyph = small.resize((_GLYPH + 2 * _BORDER,) * 2, Image.Resampling.BICUBIC)
        glyphs.append(glyph.point(solid))
    return glyphs, data.target.astype(np.int64)


def split_digits(split: Split) -> np.ndarray:
    """Indices into `load_digits` that belong to a split, ascending."""
    index = np.arange(len(_glyphs()[1]))
    return index[np.isin(index % 9, _RESIDUES[split])]


def _ink_mask(glyph: Image.Image, scene: Scene, size: int) -> Image.Image:
    """The digit's coverage of every pixel, 0 to 255."""
    scale = _GLYPH / (scene.side * size)  # glyph pixels to one image pixel
    angle = np.deg2rad(scene.angle)
    a, b = scale * float(np.cos(angle)), scale * float(np.sin(angle))
    cx, cy, middle = scene.center[0] * size, scene.center[1] * size, (_GLYPH + 2 * _BORDER) / 2
    coefficients = (a, b, middle - a * cx - b * cy, -b, a, middle + b * cx - a * cy)
    return glyph.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _background(scene: Scene, size: int) -> Image.Image:
    photo = _photos()[scene.photo]
    side = scene.crop[2] * min(photo.size)
    left, top = scene.crop[0] * (photo.width - side), scene.crop[1] * (photo.height - side)
    image = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if scene.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.point([int(scene.gain * v) for v in range(256)] * 3)


def render(
    split: Split, seed: int, index: int, size: int = SIZE, ease: float = 0.0
) -> tuple[Image.Image, Image.Image, int, int]:
    """Image `index` of a split: (RGB image, ink mask, label, index of the source digit in `load_digits`)."""
    glyphs, labels = _glyphs()
    rng = np.random.RandomState([_SPLIT_IDS[split], seed, index])
    digits = split_digits(split)
    # Fixed splits walk through their digits, so that each occurs equally often; training draws them.
    source = int(digits[index % len(digits)] if split != "train" else digits[rng.randint(len(digits))])
    scene = Scene.draw(rng, ease)
    mask = _ink_mask(glyphs[source], scene, size)
    image = _background(scene, size)
    image.paste(scene.ink, mask=mask)
    return image, mask, int(labels[source]), source


def token_targets(mask: Image.Image, label: int, grid: int) -> np.ndarray:
    """Class of every patch token, [grid * grid]: the digit's where ink covers 15 % of it, else background."""
    cover = np.asarray(mask.resize((grid, grid), Image.Resampling.BOX), dtype=np.float32) / 255
    return np.where(cover.reshape(-1) >= _COVERED, label, _BACKGROUND).astype(np.int64)


class PhotoDigits(Dataset[tuple[Any, int]]):
    """The fixed validation or test split, or any stretch of the endless training images.

    Args:
        split: "train", "validation" or "test".
        transform: applied to the PIL image (224 x 224, RGB).
        length: number of images; by default the split's own (500 and 1,000), for "train" it must be given.
        seed: seed of the images. Only seed 0 is the published benchmark.
    """

    def __init__(
        self, split: Split = "test", transform: Any = None, length: int | None = None, seed: int = 0
    ) -> None:
        if split not in _SPLIT_IDS:
            raise ValueError(f"PhotoDigits has no split {split!r}; it has train, validation and test.")
        length = length or SPLIT_IMAGES.get(split)
        if length is None:
            raise ValueError("PhotoDigits has unlimited training images; give a length.")
        self.split, self.transform, self.length, self.seed = split, transform, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, _, label, _ = render(self.split, self.seed, index)
        return (self.transform(image) if self.transform else image), label

    def groups(self) -> np.ndarray:
        """Source digit of every image, [length]; images of one digit are not independent."""
        if self.split == "train":
            return np.array([render("train", self.seed, i, size=16)[3] for i in range(self.length)])
        digits = split_digits(self.split)
        return digits[np.arange(self.length) % len(digits)]

    def pixel_hash(self) -> str:
        """SHA-256 of all pixels and labels, in order."""
        digest = hashlib.sha256()
        for index in range(self.length):
            image, _, label, _ = render(self.split, self.seed, index)
            digest.update(image.tobytes() + bytes([label]))
        return digest.hexdigest()
