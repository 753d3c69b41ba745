"""Made-up pictures."""

import numpy as np
from PIL import Image


def draw(folder, count, seed):
    """Folders of two classes of smooth random pictures."""
    rng = np.random.RandomState(seed)
    for index in range(count):
        path = folder / ("a", "b")[index % 2]
        path.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.randint(0, 256, (4, 4, 3)).astype(np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(path / f"{index}.png")


def an_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
