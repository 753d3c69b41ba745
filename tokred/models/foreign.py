"""Published checkpoints of models that were trained with a reduction in place: rows of training without training.

Such a checkpoint serves as an adapter of a full fit, with its own backbone, layers and options. Where its parameters fix the token counts
(PatchMerger, Sinkhorn, SiT) it runs at those counts, whatever the budget; else at counts that meet the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokred.core import registry
from tokred.core.flops import CostTable
from tokred.core.match import Match, match
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT, num_patches
from tokred.errors import TokredError
from tokred.models import tokenreduction
from tokred.models.adapters import Adapter
from tokred.utils.text import spaced


@dataclass(frozen=True)
class Checkpoint(Adapter):
    """A published checkpoint: an adapter whose card was made from what the file itself says."""

    @property
    def full(self) -> bool:
        return True

    @property
    def fixed(self) -> bool:
        """Whether its parameters serve only its own token counts."""
        return self.card["tokens"] is not None

    @property
    def trained_at(self) -> str:
        """The keep rate of its training, as tables show options, where it runs at other counts now; else nothing."""
        rates = self.card["rates"]
        return "" if self.fixed or not rates else f"trained_rate={','.join(f'{rate:g}' for rate in rates)}"

    def tensors(self) -> dict[str, Tensor]:
        return tokenreduction.tensors(self.path, self.card)

    def apply(self, backbone: Any, plan: Plan, weights_hash: str, seed: int = 0) -> ReducedViT:
        self.check(backbone)
        return super().apply(backbone, plan, weights_hash, seed)

    def check(self, backbone: Any) -> None:
        """Raise where the checkpoint is of another model than the one that is compared.

        Raises:
            TokredError: with the model that it is of.
        """
        own = (self.card["width"], self.card["depth"], self.card["patches"], self.card["classes"])
        here = (backbone.embed_dim, len(backbone.blocks), num_patches(backbone), backbone.num_classes)
        if own != here:
            words = "a model of width {}, {} layers, {} patches and {} classes"
            raise TokredError(
                f"{self.path} holds {words.format(*own)} ({self.card['model']}), but what is compared is {words.format(*here)}; "
                "choose the --model and the data that it was trained for."
            )

    def own_tokens(self, n: int) -> tuple[int, ...] | None:
        """The counts that it was trained at, as far as they are known; those of ToMe as far as one merging can take them."""
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

    def match(
        self,
        costs: CostTable,
        budget: float,
        options: Mapping[str, Any],
        stages: tuple[int, ...] | None = None,
    ) -> Match:
        """Its plan: at its own counts where they are fixed, else at those that meet the budget.

        Raises:
            TokredError: it is of another model, its own layers or options are not those asked for, or the budget is out of reach.
        """
        self.check(costs.backbone)
        own, method = tuple(self.card["stages"]), self.card["method"]
        if stages is not None and stages != own:
            raise TokredError(
                f"{self.path} was trained at layers {spaced(own)}, not at {spaced(stages)}; leave --stages out."
            )
        chosen = {**self.card["options"], **options}
        if not self.fixed:
            return match(costs, method, budget, stages=own, options=chosen)
        rates = self.card["rates"]
        plan = Plan(method, own, tuple(self.card["tokens"]), chosen, rates[0] if len(rates) == 1 else None)
        return Match(plan, costs.plan(plan), costs.reducers(plan), costs.dense, budget, costs.n)


def nearest(
    given: list[Adapter],
    costs: CostTable,
    budget: float,
    options: Mapping[str, Mapping[str, Any]],
    stages: tuple[int, ...] | None = None,
) -> tuple[list[Adapter], dict[str, Match], dict[str, TokredError]]:
    """Of several checkpoints of a method, the one that was trained nearest to the budget, with its plan.

    Args:
        given: adapters of all kinds; those that are no published checkpoint stay as they are.
        costs: of the model that is compared.
        budget: fraction of FLOPs to save.
        options: that were asked for, by method.
        stages: layers that were asked for.

    Returns:
        the adapters without the checkpoints that are farther, the plans by method, and why a method's checkpoint has none.
    """
    kept: list[Adapter] = [adapter for adapter in given if not isinstance(adapter, Checkpoint)]
    matches, refused = dict[str, Match](), dict[str, TokredError]()
    checkpoints = [adapter for adapter in given if isinstance(adapter, Checkpoint)]
    for method in dict.fromkeys(checkpoint.card["method"] for checkpoint in checkpoints):
        found = [checkpoint for checkpoint in checkpoints if checkpoint.card["method"] == method]
        chosen = (
            min(found, key=lambda checkpoint: _distance(checkpoint, costs, budget))
            if len(found) > 1
            else found[0]
        )
        kept.append(chosen)
        try:
            matches[method] = chosen.match(costs, budget, options.get(method, {}), stages)
        except TokredError as error:
            refused[method] = error
    return kept, matches, refused


def _distance(checkpoint: Checkpoint, costs: CostTable, budget: float) -> tuple[bool, float]:
    """How far a checkpoint's own saving is from the budget; those of another model are farthest."""
    try:
        checkpoint.check(costs.backbone)
    except TokredError:
        return True, 0.0
    tokens = checkpoint.own_tokens(costs.n)
    if tokens is None:
        return False, 1.0
    plan = Plan(
        checkpoint.card["method"], tuple(checkpoint.card["stages"]), tokens, dict(checkpoint.card["options"])
    )
    return False, abs(1 - costs.plan(plan) / costs.dense - budget)


def read(path: Path, method: str | None = None) -> Checkpoint:
    """A checkpoint of the TokenReduction benchmark, the one kind that there is.

    Args:
        path: of the file.
        method: that it was trained with, in tokred's name; by default what it says itself.

    Raises:
        TokredError: see `tokenreduction.describe`.
    """
    return Checkpoint(path, tokenreduction.describe(path, method))
