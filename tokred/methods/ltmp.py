"""LTMP: merge what is more similar, and drop what is less important, than thresholds."""

from __future__ import annotations

from math import cos, pi

import torch
from torch import Tensor

from tokred.core.ops import alternate, best_match, unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register
from tokred.errors import TokredError


@register("ltmp", paper="Bonnaerens and Dambre, TMLR 2023, arXiv:2305.06420")
class LTMP(Reducer):
    """Merge matched tokens that are similar enough, then drop tokens that get too little attention.

    The inference of the paper, with thresholds that are calibrated, not learned. Tokens alternate between
    sets A and B as in ToMe. A token of A whose cosine similarity to its best match in B, by keys, is above a
    threshold joins it. Then groups whose importance is at most another threshold are dropped. Importance is
    the attention received, mean over heads and queries; a group has that of its most important member. Groups
    become means weighted by size. Each image keeps as many tokens as the thresholds leave, at least one.

    The paper trains a pair of thresholds for each layer, by gradients for a budget. Here one number t sets
    both in all layers: tokens merge whose keys form an angle below t times 90 degrees, and are dropped at an
    importance of at most `prune` times t times the mean over all tokens. Calibration sets t. To learn the
    thresholds, a training pass would have to merge and mask tokens at once, which the framework does not
    support.
    Cost: N²/4 d, and the attention map, H N² d.

    Args:
        prune: importance, as a fraction of the mean, up to which tokens are dropped at t = 1; 0 merges alone.
        proportional: add log(size) to later attention scores, as published.
    """

    groups = ("merging", "pruning", "training-free")
    stages = "all"
    knob = "threshold"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        prune: float = 1.0,
        proportional: bool = True,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if not prune >= 0:
            raise TokredError(f"ltmp.prune must not be negative, got {prune:g}.")
        self.prune, self.proportional = prune, proportional

    def forward(self, view: View) -> Merge:
        root = self._matched(view)
        attention = view.received_attention.detach() / self.heads  # its mean over all tokens is 1
        attention = torch.where(view.valid, attention, -1.0)
        importance = torch.full_like(attention, -1.0).scatter_reduce(1, root, attention, "amax")
        stays = (importance > self.prune * self.threshold).long()
        stays = stays.scatter(1, importance.argmax(1, keepdim=True), 1)
        a, b = alternate(view.num_prefix)
        order = torch.arange(root.shape[1], device=root.device)
        order = torch.cat([order[a], order[b]])  # what is left of A comes before what is left of B
        slot = torch.zeros_like(root)
        slot[:, order] = stays[:, order].cumsum(1) - 1
        label = torch.where(stays.gather(1, root) > 0, slot.gather(1, root), -1)
        return Merge(label, self.n, weight=view.size, drops=True)

    def _matched(self, view: View) -> Tensor:
        """The token that each one joins, [B, n]; its own index where it joins none."""
        a, b = alternate(view.num_prefix)
        own = torch.arange(view.x.shape[1], device=view.x.device)
        root = own.repeat(len(view.x), 1)
        if view.x.shape[1] < 2:
            return root
        unit = unit_rows(view.key_metric.detach()) * view.valid.unsqueeze(-1)
        similarity, partner = best_match(unit[:, a], unit[:, b])  # padding has 0, which joins nothing
        joins = similarity.clamp(max=1) > cos(self.threshold * pi / 2)
        root[:, a] = torch.where(joins, own[b][partner], own[a])
        return root
