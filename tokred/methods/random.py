"""Random: the control that every method must beat, and the smallest example of one."""

from __future__ import annotations

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Keep
from tokred.core.registry import register


@register("random")
class Random(Reducer):
    """Keep a random subset of the patches, drawn anew for every image and stage."""

    control = True

    def forward(self, view: View) -> Keep:
        kept = view.rng.uniform(view.x).argsort(dim=1, stable=True)[:, : self.keep]
        return Keep(kept.sort(dim=1).values, self.n)
