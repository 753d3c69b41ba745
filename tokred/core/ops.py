"""Kernels for rows, groups, distances and attention, written for speed; tests hold them equal to plain loops.

Matrices over pairs of tokens are worked on a slice of rows at a time, so that little else of their size is
ever made. Up to 256 tokens there is one slice. Slices depend on shapes alone, so an image's result does not
depend on its batch.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECT_DISTANCES = 25  # tokens up to which distances come from differences instead of inner products
ROWS = 256  # rows of a matrix over pairs of tokens that one step looks at

_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the former from torch 2.7
_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines  # it sorts the rows of `scatter_add`
_SORTED_SCATTER = _FBGEMM and torch.backends.openmp.is_available()


def traced() -> bool:
    """Whether a graph is being made, in which nothing may depend on the size of this batch."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, M] of x [B, N, C], as [B, M, C]."""
    return x.flatten(0, 1).index_select(0, flat_index(index, x.shape[1])).unflatten(0, index.shape)


def sum_groups(x: Tensor, label: Tensor, m: int, weight: Tensor | None = None) -> Tensor:
    """Sums of the rows of x [B, N, C] that carry each label, [B, m, C]; rows count `weight` [B, N] times.

    A group is added in the order of its rows, on every device, and rows are read once, in one pass. On a CPU
    `scatter_add` does so where torch can sort the labels of whole rows; else it takes 5 to 15 times as long,
    and on a GPU it adds in no fixed order. Exported graphs have `index_add` instead, for which ONNX has an
    operator.
    """
    if x.shape[-1] == 1:  # one number a row
        weighted = x if weight is None else x * weight.unsqueeze(-1)
        return x.new_zeros(x.shape[0], m, 1).scatter_add(1, label.unsqueeze(-1), weighted)
    if _exporting():
        weighted = x if weight is None else x * weight.unsqueeze(-1)
        sums = x.new_zeros(x.shape[0] * m, x.shape[-1])
        sums = sums.index_add(0, flat_index(label, m), weighted.flatten(0, 1))
        return sums.unflatten(0, (x.shape[0], m))
    if weight is None and _SORTED_SCATTER and x.device.type == "cpu" and not traced():
        rows = flat_index(label, m).unsqueeze(-1).expand(-1, x.shape[-1])
        sums = x.new_zeros(x.shape[0] * m, x.shape[-1]).scatter_add_(0, rows, x.flatten(0, 1))
        return sums.unflatten(0, (x.shape[0], m))
    order, start = _bags(label, m)
    chosen = None if weight is None else weight.gather(1, order).flatten()
    total = F.embedding_bag(
        flat_index(order, x.shape[1]), x.flatten(0, 1), start, mode="sum", per_sample_weights=chosen
    )
    return total.unflatten(0, (x.shape[0], m))


def extremes_of_groups(x: Tensor, label: Tensor, m: int) -> Tensor:
    """In each channel the value of largest magnitude among the rows of x [B, N, C] of each label, [B, m, C].

    Of two values of one magnitude the positive one.
    """
    if _exporting():
        place, empty = label.unsqueeze(-1).expand_as(x), x.new_full((x.shape[0], m, x.shape[-1]), torch.inf)
        highest, lowest = (
            (-empty).scatter_reduce(1, place, x, "amax"),
            empty.scatter_reduce(1, place, x, "amin"),
        )
        return torch.where(highest >= -lowest, highest, lowest)
    order, start = _bags(label, m)
    index, rows = flat_index(order, x.shape[1]), x.flatten(0, 1)
    highest, lowest = (sign * F.embedding_bag(index, sign * rows, start, mode="max") for sign in (1, -1))
    return torch.where(highest >= -lowest, highest, lowest).unflatten(0, (x.shape[0], m))


def _bags(label: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The rows in the order of their labels, [B, N], and where each label starts in all of them, [B * m]."""
    order = label.argsort(dim=1, stable=True)
    count = count_groups(label, m).flatten()
    return order, count.cumsum(0) - count


def count_groups(label: Tensor, m: int) -> Tensor:
    """How many of label [B, N] are 0, 1, ..., m - 1, [B, m] int64."""
    return label.new_zeros(label.shape[0], m).scatter_add(1, label, torch.ones_like(label))


def raster(like: Tensor, columns: int) -> Tensor:
    """Row, column and 1 of the patches `like` [B, N, ...] in raster order, [B, N, 3] float32."""
    patch = torch.arange(like.shape[1], device=like.device)
    places = torch.stack([patch // columns, patch % columns, torch.ones_like(patch)], dim=-1)
    return places.float().expand(like.shape[0], -1, -1)


def join(source: Tensor, destination: Tensor, n: int) -> Tensor:
    """Labels of n tokens of which `source` join `destination`, both [B, R], and the others keep their order.

    No destination may be a source.
    """
    stays = torch.ones(source.shape[0], n, dtype=torch.long, device=source.device).scatter(1, source, 0)
    slot = stays.cumsum(1) - 1
    return slot.scatter(1, source, slot.gather(1, destination))


def behind_prefix(index: Tensor, prefix: int) -> Tensor:
    """Indices of patch tokens [B, M] as indices [B, P + M] into sequences that begin with `prefix` tokens."""
    first = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([first, index + prefix], dim=1) if prefix else index


def flat_index(index: Tensor, n: int) -> Tensor:
    """Indices [B, M] into rows of [B, n, ...] as indices into [B * n, ...], [B * M]."""
    if index.shape[0] == 1 and not traced():
        return index.flatten()
    return (index + n * torch.arange(index.shape[0], device=index.device).unsqueeze(1)).flatten()


def head_mean(x: Tensor) -> Tensor:
    """The mean over heads of x [B, H, N, d], as float32."""
    return x.float().mean(1)


def unit_rows(x: Tensor) -> Tensor:
    """x [..., d] divided by its norms: `F.normalize(x, dim=-1)`, in half its time for a single image."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)


def pairwise_distance(x: Tensor) -> Tensor:
    """Euclidean distances between the rows of x [B, N, C], as [B, N, N]: what `torch.cdist(x, x)` computes.

    Symmetric, and exactly 0 between equal rows, so that ties are ties. For that reason squared norms are the
    diagonal of the inner
    products: `torch.cdist` computes them apart, and its rounding puts equal rows up to 0.05 away from each
        other.
    """
    if x.shape[1] <= DIRECT_DISTANCES:
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    x = x - x.mean(1, keepdim=True)  # leaves the distances as they are and their rounding error small
    inner = torch.matmul(x, x.mT)
    square = inner.diagonal(dim1=1, dim2=2).clone()
    parts = zip(inner.split(ROWS, dim=1), square.split(ROWS, dim=1), strict=True)
    for rows, own in parts:  # in place: one matrix, not three
        rows.mul_(-2).add_(own.unsqueeze(2) + square.unsqueeze(1)).clamp_(min=0).sqrt_()
    return inner


def row_attention(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of one query to all keys, mean over heads, as [B, N]; arguments as for `row_of_heads`."""
    return row_of_heads(q, k, bias).mean(1)


def row_of_heads(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of one query to all keys in each head: softmax(q k^T + bias), as [B, H, N].

    Args:
        q: [B, H, 1, d], scaled.
        k: [B, H, N, d].
        bias: [B, 1, 1, N].
    """
    scores = torch.linalg.vecdot(
        k.transpose(1, 2), q.transpose(1, 2)
    ).mT  # in the keys' own layout, not a copy
    if bias is not None:
        scores = scores + bias.float().squeeze(2)
    return scores.softmax(-1)


def received_attention(
    q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None, asks: Tensor | None = None
) -> Tensor:
    """Attention that each key receives: softmax(scale q k^T + bias).sum((1, 2)), as [B, N] float32.

    A head and a slice of queries at a time, so that the map never exists as a whole and what does stays in
    the caches.

    Args:
        q: [B, H, N, d].
        k: [B, H, N, d].
        scale: factor on the inner products.
        bias: [B, 1, 1, N].
        asks: [B, N, 1] bool, the queries that count; by default all.
    """
    bias = None if bias is None else bias.float().squeeze(1)  # [B, 1, N]
    total = k.new_zeros(k.shape[0], k.shape[2], dtype=torch.float32)
    for queries, keys in zip(q.unbind(1), k.float().unbind(1), strict=True):
        for start, rows in enumerate(queries.split(ROWS, dim=1)):
            scores = torch.bmm(rows.float() * scale, keys.mT)  # [B, rows, N]
            weight = (scores if bias is None else scores + bias).softmax(-1)
            if asks is not None:
                weight = weight * asks[:, start * ROWS : (start + 1) * ROWS]
            total = total + weight.sum(1)
    return total


def nearest_center(distance: Tensor, center: Tensor) -> Tensor:
    """Slot in `center` [B, K] of the nearest centre to every token, [B, n]; the first one wins a tie.

    Args:
        distance: [B, n, n], symmetric: the rows of the centres are fetched, which is cheaper than their
            columns.
        center: [B, K] int64.
    """
    start, least, slot = 0, None, None
    for part in center.split(ROWS, dim=1):
        value, index = take_rows(distance, part).min(1)
        if least is None or slot is None:
            least, slot = value, index
        else:
            slot, least = torch.where(value < least, start + index, slot), torch.minimum(value, least)
        start += ROWS
    assert slot is not None
    return slot


def nearest_before(distance: Tensor, rank: Tensor) -> Tensor:
    """Distance of every token to the nearest one of lower rank, [B, n]; infinity for the lowest.

    Args:
        distance: [B, n, n].
        rank: [B, n], a permutation of 0, 1, ..., n - 1 as float32.
    """
    parts = zip(distance.split(ROWS, dim=1), rank.split(ROWS, dim=1), strict=True)
    return torch.cat(
        [torch.where(rank.unsqueeze(1) < own.unsqueeze(2), rows, torch.inf).amin(-1) for rows, own in parts],
        dim=1,
    )


def best_match(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Largest inner product of each vector of a [B, N, d] with b [B, M, d], and its index."""
    if a.shape[1] <= ROWS:
        value, index = torch.bmm(a, b.mT).max(-1)
        return value, index
    parts = [torch.bmm(rows, b.mT).max(-1) for rows in a.split(ROWS, dim=1)]
    values, indices = zip(*parts, strict=True)
    return torch.cat(values, dim=1), torch.cat(indices, dim=1)


def alternate(num_prefix: int) -> tuple[slice, slice]:
    """Sets A and B of ToMe's split: patch tokens at even and at odd positions, counted from the prefix on."""
    first = num_prefix % 2  # patch i stands at position prefix + i
    return slice(first, None, 2), slice(1 - first, None, 2)


def bipartite_labels(tokens: Tensor, a: slice | Tensor, b: slice | Tensor, removed: int) -> Tensor:
    """Groups [B, N] of unit tokens [B, N, d]: `removed` best matches of set A join set B; first A, then B."""
    similarity, partner = best_match(tokens[:, a], tokens[:, b])  # [B, |A|]
    source = similarity.argsort(dim=1, descending=True, stable=True)[:, :removed]
    stays = torch.ones_like(partner).scatter(1, source, 0)
    unmerged = partner.shape[1] - removed
    label = partner.new_empty(partner.shape[0], tokens.shape[1])
    label[:, a] = torch.where(stays > 0, stays.cumsum(1) - 1, unmerged + partner)
    label[:, b] = torch.arange(unmerged, tokens.shape[1] - removed, device=label.device)
    return label


def smallest(x: Tensor, n: int, k: int) -> Tensor:
    """The k smallest values in every row of x [B, M, n], as [B, M, k], in no order."""
    return torch.cat([_smallest(rows, n, k) for rows in x.split(ROWS, dim=1)], dim=1)


def _smallest(x: Tensor, n: int, k: int) -> Tensor:
    """`smallest` of a slice.

    The k smallest values lie within k groups of numbers, those with the smallest minima: the search is among
    minima first, then within these groups. That is half the time of `topk` over whole rows at n = 196 and k =
    5, and less for longer rows.
    """
    size = round((n / k) ** 0.5)  # of a group: then both searches are over as many numbers
    groups = n // size if size else 0
    if size < 2 or groups < k:
        return x.topk(k, dim=-1, largest=False, sorted=False).values
    grouped, left = (
        x[..., : size * groups].unflatten(-1, (size, groups)),
        x[..., size * groups :],
    )  # a group is a column
    least = reduce(torch.minimum, grouped.unbind(-2))
    chosen = least.topk(k, dim=-1, largest=False, sorted=False).indices.unsqueeze(-2).expand(-1, -1, size, -1)
    return (
        torch.cat([grouped.gather(-1, chosen).flatten(-2), left], dim=-1)
        .topk(k, dim=-1, largest=False, sorted=False)
        .values
    )


def kmeans(points: Tensor, count: int, iterations: int = 8) -> Tensor:
    """Centres [count, C] of points [n, C] by Lloyd's algorithm, from points that torch's generator draws.

    A centre without points stays where it is. The order of the centres is random.
    """
    centers = points[torch.randperm(len(points))[:count].to(points.device)]
    for _ in range(iterations):
        closeness = torch.matmul(points, centers.mT) - centers.square().sum(1) / 2
        member = F.one_hot(closeness.argmax(1), count).to(points.dtype)
        size = member.sum(0).unsqueeze(1)
        centers = torch.where(size > 0, torch.matmul(member.mT, points) / size.clamp(min=1), centers)
    return centers
