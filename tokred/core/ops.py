"""Searches among pairs of tokens, a slice of rows at a time, so that nothing else of their size is ever made.

Up to 256 tokens there is one slice. Slices depend on shapes alone, so an image's result does not depend on its batch.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from tokred.core.reduction import take_rows

ROWS = 256  # of a matrix that one step looks at


def nearest_center(distance: Tensor, center: Tensor) -> Tensor:
    """The nearest of the tokens `center` [B, K] to every token, as slots in [0, K), [B, n]; the first one wins a tie.

    Args:
        distance: [B, n, n], symmetric: the rows of the centres are fetched, which is cheaper than their columns.
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
    """The largest inner product of each vector of a [B, N, d] with one of b [B, M, d], and with which, [B, N]; the first wins a tie."""
    parts = [torch.matmul(rows, b.mT).max(-1) for rows in a.split(ROWS, dim=1)]
    values, indices = zip(*parts, strict=True)
    return torch.cat(values, dim=1), torch.cat(indices, dim=1)


def smallest(x: Tensor, n: int, k: int) -> Tensor:
    """The k smallest values in every row of x [B, M, n], as [B, M, k], in no order."""
    return torch.cat([_smallest(rows, n, k) for rows in x.split(ROWS, dim=1)], dim=1)


def _smallest(x: Tensor, n: int, k: int) -> Tensor:
    """`smallest` of a slice.

    The k smallest values lie within k groups of numbers, those with the smallest minima: the search is among minima first, then within
    these groups. That is half the time of `topk` over whole rows at n = 196 and k = 5, and less for longer rows.
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
