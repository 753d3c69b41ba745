"""Methods whose counts depend on the image: one that drops tokens, one that merges them."""

import torch
from torch.nn import functional as F

from tokred.core.reducer import Reducer
from tokred.core.reduction import Merge


class Standouts(Reducer):
    """Keep the tokens that get at least a fraction of the largest CLS attention."""

    knob = "threshold"
    needs_cls = True

    def forward(self, view):
        score = view.cls_attention * view.valid
        stays = (score >= self.threshold * score.amax(1, keepdim=True)) & view.valid
        return Merge(torch.where(stays, stays.cumsum(1) - 1, -1), self.n, drops=True)


class Runs(Reducer):
    """Merge neighbours as long as their cosine similarity is above the threshold."""

    knob = "threshold"
    proportional = True

    def forward(self, view):
        x = view.x.float()
        alike = F.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1) > self.threshold - 0.5
        label = F.pad((~alike).long().cumsum(1), (1, 0))
        return Merge(torch.where(view.valid, label, -1), self.n, view.size, drops=True)
