"""What a reduction does to a model: its plan, its cost by layer, and where tokens go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokred.core.costs import CostTable
from tokred.core.plan import Plan
from tokred.core.reduction import compose_labels
from tokred.tables.render import Table
from tokred.utils.text import spaced


class Inspection:
    """`reduced.tokred` of a reduced model.

    Args:
        model: a `ReducedViT`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def plan(self) -> Plan:
        """Which tokens go where: method, options, layers and the tokens kept after each."""
        plan: Plan = self._model.plan
        return plan

    def summary(self) -> Table:
        """Tokens and GFLOPs by layer, of the dense and the reduced model; `print` shows the table."""
        costs, plan, depth = CostTable(self._model.backbone), self.plan, self._model.depth
        before_attention = bool(plan.stages) and plan.reducer.site == "pre"
        kept, n, rows = dict(zip(plan.stages, plan.tokens, strict=True)), costs.n, []
        prefix, total, all_reducers = self._model.num_prefix, costs.embedding, 0
        rows.append(["embedding", str(prefix + n), *_giga(costs.embedding, 0, costs.embedding)])
        for layer in range(1, depth + 1):
            before, n = n, kept.get(layer, n)
            attended = n if before_attention else before
            own = costs.part("attend", layer, attended) + costs.part("mlp", layer, n)
            dense = costs.part("attend", layer, costs.n) + costs.part("mlp", layer, costs.n)
            reducer = costs.stage(plan, layer, before, n)
            rows.append([f"layer {layer}", str(prefix + n), *_giga(own + reducer, reducer, dense)])
            total, all_reducers = total + own + reducer, all_reducers + reducer
        head = costs.part("head", depth, n)
        rows.append(["head", str(prefix + n), *_giga(head, 0, costs.part("head", depth, costs.n))])
        rows.append(["total", "", *_giga(total + head, all_reducers, costs.dense)])
        saved = f"{1 - (total + head) / costs.dense:.1%} of FLOPs saved"
        if self._model.adaptive:
            saved = "tokens depend on the image, these are the most"
        name = f"{plan.reducer.name} at layers {spaced(plan.stages)}" if plan.method else "the dense model"
        return Table(
            title=f"{name}: {saved}",
            headers=("Part", "Tokens", "GFLOPs", "Reducer", "Dense"),
            rows=rows,
            sections=frozenset((len(rows) - 2,)),
        )

    @torch.no_grad()
    def trace(self, images: Tensor) -> dict[int, Tensor]:
        """The token that holds each patch after each stage, by layer: [B, rows, columns] int64, -1 for none.

        Tokens are counted without the prefix. Where tokens are mixtures, a patch belongs to the one that has
        its largest share.
        """
        reductions = self._model.run(images).reductions
        grid = self._model.backbone.patch_embed.dynamic_feat_size(images.shape[-2:])
        layers = [stage.layer for stage in self._model.stage_list()]
        return {
            layer: compose_labels(reductions[: place + 1]).unflatten(1, tuple(grid))
            for place, layer in enumerate(layers)
        }


def _giga(*flops: int) -> list[str]:
    return [f"{value / 1e9:.4f}" if value else "" for value in flops]
