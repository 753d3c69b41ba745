"""ATC: agglomerative clustering of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokred.core.ops import unit_rows
from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge
from tokred.core.registry import register


@register("atc", paper="Haurum et al., ECCV 2024, arXiv:2409.11923")
class ATC(Reducer):
    """Merge the two most similar clusters of tokens again and again, until as many are left as are wanted.

    Bottom-up clustering of the patches by the cosine distance of their keys, averaged over heads, and means
    weighted by size. The hierarchy does not depend on the number of clusters: one clustering serves every
    budget, and clusters of a lower budget are parts of those of a higher one.

    Differences from the authors' code: clusters stand in the order of their first tokens; SciPy's hierarchy
    in place of scikit-learn's, which is the same algorithm; a guard against zero keys.
    Cost: N² d for the distances. The clustering, N² comparisons, runs on the host, one image after another;
    it does not count as FLOPs, and a GPU waits for it.

    Args:
        linkage: the distance of two clusters: the "average" (published), largest ("complete") or smallest
            ("single") distance of their tokens.
        proportional: add log(size) to later attention scores.
    """

    groups = ("merging", "training-free")
    host = True

    def __init__(
        self,
        n: int,
        keep: int,
        dim: int,
        heads: int,
        *,
        linkage: Literal["average", "complete", "single"] = "average",
        proportional: bool = True,
    ) -> None:
        super().__init__(n, keep, dim, heads)
        self.linkage, self.proportional = linkage, proportional

    def forward(self, view: View) -> Merge:
        keys = unit_rows(view.key_metric.detach())
        distance = 1 - torch.matmul(keys, keys.mT)  # [B, n, n]
        return Merge(agglomerate(distance, self.keep, self.linkage), self.keep, weight=view.size)


@torch.library.custom_op("tokred::agglomerate", mutates_args=())
def agglomerate(distance: Tensor, clusters: int, linkage: str) -> Tensor:
    """The cluster of each token, [B, N] int64, from distances [B, N, N], on the host.

    An operator of its own, so that `torch.compile` and `torch.export` need not look into SciPy. Clusters are
    numbered by their first tokens.
    """
    import numpy as np
    from scipy.cluster import hierarchy

    n = distance.shape[1]
    upper = np.triu_indices(n, 1)
    labels = np.empty(distance.shape[:2], dtype=np.int64)
    for image, distances in enumerate(distance.double().cpu().numpy()):
        condensed = np.nan_to_num(distances[upper], nan=2.0).clip(0)
        merges = hierarchy.linkage(condensed, linkage)[: n - clusters, :2].astype(np.int64)
        top = np.arange(2 * n)
        for node, pair in reversed(list(enumerate(merges, start=n))):
            top[pair] = top[node]
        _, first, inverse = np.unique(top[:n], return_index=True, return_inverse=True)
        labels[image] = first.argsort().argsort()[inverse]
    return torch.from_numpy(labels).to(distance.device)


@agglomerate.register_fake
def _(distance: Tensor, clusters: int, linkage: str) -> Tensor:
    return distance.new_empty(distance.shape[:2], dtype=torch.long)
