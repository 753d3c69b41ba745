"""Evo-ViT without its way back: slow tokens go on, one token represents the fast ones."""

from __future__ import annotations

import torch

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("evovit", paper="Xu et al., AAAI 2022, arXiv:2108.01390")
class EvoViT(Reducer):
    """Keep the slow tokens, those that the CLS token attended to most, and one mean of the fast ones.

    The paper's slow-fast selection, in a form that needs no training. The fast tokens become one
    representative, their mean weighted by CLS attention; unlike EViT's fused token, it is divided by the sum
    of the weights. It is the last token. At the next stage it cannot become slow, and the new fast tokens
    join it. A keep rate leaves int(n0 * rate^s) slow tokens.

    This is not the published method. There, fast tokens are only set aside: they change as their
    representative does and come back at layer 9 to be selected anew, so that a rate of 0.5 leaves 98 slow
    tokens to the end. Here they do not come back. There, the classifier sees the mean of all patches instead
    of CLS, and models are trained that way for 300 epochs. There, the attention is a running average over the
    layers so far, in which the newest has a weight of one half from layer 5 on; here it is that of the
    previous layer, which is the same at layer 5.
    Cost: N C for one row of attention.
    """

    groups = ("pruning", "training-free")
    site = "pre"
    stages = (5, 9)
    extra = 1
    needs_cls = True

    def forward(self, view: View) -> Merge:
        score = view.cls_attention.clamp(min=1e-12)  # [B, n]
        fast = self.keep - 1  # the last slot
        ranked = score
        if view.history is not None:
            ranked = torch.cat([score[:, :-1], torch.zeros_like(score[:, -1:])], dim=1)
        slow = ranked.argsort(dim=1, descending=True, stable=True)[:, :fast]
        slots = torch.arange(fast, device=slow.device).expand_as(slow)
        label = torch.full_like(score, fast, dtype=torch.long).scatter(1, slow, slots)
        return Merge(label, self.keep, weight=score)
