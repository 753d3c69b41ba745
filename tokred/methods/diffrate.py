"""DiffRate: prune the tokens that matter least, then merge the next ones into those that are left."""

from __future__ import annotations

import torch

from tokred.core.ops import best_match, take_rows, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("diffrate", paper="Chen et al., ICCV 2023, arXiv:2305.17997")
class DiffRate(Reducer):
    """Drop the tokens that the CLS token attends to least, and merge the next ones into their most similar.

    Tokens are in order of CLS attention. The last ones are dropped; of the others, the last ones join the
    most similar token above them, by the cosine of the tokens. Groups are plain means. A token that joins
    another adds its size times their cosine to the size, by which later attention is proportional.

    The paper searches by gradients how many tokens each layer prunes and merges. Here the counts come from
    the budget or from a schedule: `--schedule diffrate_s_2.9` and others have the authors' counts. Other
    differences from their code: one fraction of the removed tokens is pruned in all layers, where the search
    has two counts for each; a negative cosine counts as 0, so that sizes stay positive.
    Cost: N C, one row of attention, and (N - M) M C for the similarities, also of the tokens that are
    dropped.

    Args:
        pruned: fraction of the removed tokens that is dropped and not merged; 0.33 to 0.39 in the authors'
            schedules without their last layer.
        proportional: add log(size) to later attention scores, as published.
    """

    groups = ("merging", "pruning", "training-free")
    stages = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    knob = "removed"
    needs_cls = True

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        pruned: float = 0.35,
        proportional: bool = True,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if not 0 <= pruned <= 1:
            raise TokredError(f"diffrate.pruned is a fraction between 0 and 1, got {pruned:g}.")
        self.pruned, self.proportional = pruned, proportional

    def forward(self, view: View) -> Merge:
        removed = self.n - self.keep
        merged = removed - int(removed * self.pruned + 0.5)
        order = view.cls_attention.argsort(dim=1, descending=True, stable=True)  # [B, n]
        kept, rest = order[:, : self.keep], order[:, self.keep :]
        unit = unit_rows(view.x.detach().float())
        cosine, target = best_match(take_rows(unit, rest), take_rows(unit, kept))
        slots = torch.arange(self.n, device=order.device).expand_as(order)
        target = torch.where(slots[:, :removed] < merged, target, -1)
        label = torch.zeros_like(order).scatter(1, order, torch.cat([slots[:, : self.keep], target], dim=1))
        mass = view.size.scatter(1, rest, view.size.gather(1, rest) * cosine.clamp(min=0))
        return Merge(label, self.keep, mass=mass, drops=True)
