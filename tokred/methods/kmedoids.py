"""K-Medoids: token pooling by clustering around medoids."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokred.core.ops import nearest_center, sum_groups
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Keep, Merge, Reduction
from tokred.core.registry import register
from tokred.errors import TokredError


@register("kmedoids", paper="Marin et al., 2021, arXiv:2110.03860")
class KMedoids(Reducer):
    """Cluster the tokens around the most attended ones and keep the cluster centres.

    Centres start at the tokens with the largest weight, w; rounds of assignment to the nearest centre
    (Euclidean) and update follow. As in the TokenReduction benchmark, the output is the medoids themselves,
    so the method selects tokens.
    Cost: H N² d for the attention received, N² C for the distances and N² in every iteration.

    Args:
        update: "textbook" moves a centre to the member with the least weighted distance to its cluster.
            "published" is the benchmark's code, in which the cost of a candidate sums over all tokens, not
            only the cluster's, and is multiplied by the candidate's own weight; an emptied cluster falls back
            to token 0. Its variant without weights, which starts from a random token, is not offered.
        weight: "received", the attention a token receives from all queries (the code), or "cls", the CLS
            attention (the text).
        output: the "medoid", the "mean" of the cluster, or "wmean", its mean weighted by w.
        iterations: rounds of assignment and update.
    """

    groups = ("core", "pruning", "training-free")
    site = "pre"

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        update: Literal["textbook", "published"] = "textbook",
        weight: Literal["received", "cls"] = "received",
        output: Literal["medoid", "mean", "wmean"] = "medoid",
        iterations: int = 3,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        if not 0 <= iterations <= 100:
            raise TokredError(f"kmedoids.iterations must lie between 0 and 100, got {iterations}.")
        if update == "published" and output != "medoid":
            raise TokredError(
                f"kmedoids.output={output} needs update=textbook: the published one can leave empty clusters."
            )
        self.update, self.weight, self.output, self.iterations = update, weight, output, iterations
        self.needs_cls = weight == "cls"

    def forward(self, view: View) -> Reduction:
        weight = view.received_attention if self.weight == "received" else view.cls_attention  # [B, n]
        center = weight.argsort(dim=1, descending=True, stable=True)[:, : self.keep]  # [B, keep]
        for _ in range(self.iterations):
            label = nearest_center(view.distance, center)
            center = self._updated(center, label, view.distance, weight.detach())
        label = nearest_center(view.distance, center)
        if self.update == "textbook":  # a centre is in its own cluster, so that none is empty
            label = label.scatter(1, center, torch.arange(self.keep, device=center.device).expand_as(center))
        if self.output == "medoid":
            return Keep(center, self.n, label)
        return Merge(label, self.keep, weight=weight if self.output == "wmean" else None)

    def _updated(self, center: Tensor, label: Tensor, distance: Tensor, weight: Tensor) -> Tensor:
        """The member of each cluster with the least cost, [B, keep]; the first one wins a tie."""
        if self.update == "textbook":
            # Weighted distances of every token to each cluster, [B, keep, n], and to its own, [B, n].
            to_cluster = sum_groups(distance, label, self.keep, weight)
            cost = to_cluster.gather(1, label.unsqueeze(1)).squeeze(1)
        else:
            cost = weight * distance.sum(1)
        least = cost.new_full(center.shape, torch.inf).scatter_reduce(1, label, cost, "amin")
        index = torch.arange(self.n, device=label.device)
        candidate = torch.where(cost == least.gather(1, label), index, self.n)
        none = torch.full_like(center, self.n)  # what an empty cluster has
        best = none.scatter_reduce(1, label, candidate, "amin")
        return torch.where(best < self.n, best, center if self.update == "textbook" else 0)
