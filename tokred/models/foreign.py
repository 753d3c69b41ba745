"""Foreign checkpoints: other projects' models that were trained with a reduction in place.

Such a checkpoint serves as an adapter of a full fit, with its own backbone, layers and options. Where its
parameters fix the token counts (PatchMerger, Sinkhorn, SiT) it runs at those counts whatever the budget, else
at counts that meet the budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokred.core import registry
from tokred.core.backbone import num_patches
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.models import tokenreduction
from tokred.models.adapters import Adapter, in_folder
from tokred.models.adapters import read as read_adapter
from tokred.models.tensor_files import CHECKPOINTS


@dataclass(frozen=True)
class Checkpoint(Adapter):
    """A foreign checkpoint: an adapter whose card is made from what the file itself says."""

    @property
    def full(self) -> bool:
        return True

    @property
    def fixed(self) -> bool:
        """Whether its parameters serve only its own token counts."""
        return self.card["tokens"] is not None

    @property
    def trained_at(self) -> str:
        """The keep rate of its training, as tables show options, where it can run at others; else ""."""
        rates = self.card["rates"]
        return "" if self.fixed or not rates else f"trained_rate={','.join(f'{rate:g}' for rate in rates)}"

    def tensors(self) -> dict[str, Tensor]:
        return tokenreduction.tensors(self.path, self.card)

    def apply(self, backbone: Any, plan: Plan, weights_hash: str, seed: int = 0) -> ReducedViT:
        self.check(backbone)
        return super().apply(backbone, plan, weights_hash, seed)

    def check(self, backbone: Any) -> None:
        """Raise a `TokredError` if the checkpoint is of another model than the one that is compared."""
        own = (self.card["width"], self.card["depth"], self.card["patches"], self.card["classes"])
        here = (backbone.embed_dim, len(backbone.blocks), num_patches(backbone), backbone.num_classes)
        if own != here:
            words = "a model of width {}, {} layers, {} patches and {} classes"
            raise TokredError(
                f"{self.path} holds {words.format(*own)} ({self.card['model']}), but what is compared is "
                f"{words.format(*here)}; choose the --model and the data that it was trained for."
            )

    def own_tokens(self, n: int) -> tuple[int, ...] | None:
        """The token counts of its training, where they are known; ToMe's at least half of those before."""
        if self.fixed:
            return tuple(self.card["tokens"])
        rates, cls = self.card["rates"], registry.get(self.card["method"])
        stages = len(self.card["stages"])
        rates = [rates[0] ** (stage + 1) for stage in range(stages)] if len(rates) == 1 else rates
        if len(rates) != stages:
            return None
        counts, current = list[int](), n
        for rate in rates:
            current = min(current, max(cls.floor(current), int(n * rate) + cls.extra))
            counts.append(current)
        return tuple(counts)


def read(path: Path, method: str | None = None) -> Checkpoint:
    """A checkpoint of the TokenReduction benchmark, the one kind that there is.

    Args:
        path: path of the file.
        method: that it was trained with, in tokred's name; by default what it says itself.

    Raises:
        TokredError: see `tokenreduction.describe`.
    """
    return Checkpoint(path, tokenreduction.describe(path, method))


def find(places: Iterable[str | Path]) -> list[Adapter]:
    """All adapters in files and folders, in this order.

    A place may also be a foreign checkpoint, or a folder with such and no adapter; "evit=FILE" names the
    method of its training.

    Raises:
        TokredError: no such file or folder, a file without a readable card, or a folder without an adapter.
    """
    adapters: list[Adapter] = []
    for place in places:
        try:
            here = _at(*_with_method(place))
        except OSError:  # no file can have such a name
            here = []
        if not here:
            raise TokredError(
                f"No adapter at {place}; give a .safetensors file that `tokred fit` wrote, a published "
                "checkpoint, or their folder."
            )
        adapters += here
    return adapters


def _with_method(place: str | Path) -> tuple[Path, str | None]:
    """A place, and the method that the user named with it."""
    method, equals, file = str(place).partition("=")
    if equals and method in registry.names() and not Path(place).exists():
        return Path(file), method
    return Path(place), None


def _at(place: Path, method: str | None) -> list[Adapter]:
    if place.is_file():
        return [read(place, method) if place.suffix in CHECKPOINTS else read_adapter(place)]
    return in_folder(place) or [read(file, method) for file in sorted(place.rglob("*.pth"))]
