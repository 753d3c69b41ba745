"""Neighbouring tokens: who is beside whom, which disjoint pairs are best, which numbers make a full grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 16  # 14 x 14 and 24 x 24 random tokens take 8 to 12; a fixed number, so that graphs are fixed


def beside(position: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest token on the right of each and the nearest below it, [B, 2 n], and whether there is one.

    One place is on the right of another if it is further to the right than up or down, and below it if it is
    at least as far down as to either side. So of two different places one is on the right of the other or
    below it, and on the full grid the nearest ones are the next in the row and in the column.

    Args:
        position: [B, n, 2], row and column.
    """
    row, column = (position.unsqueeze(1) - position.unsqueeze(2)).unbind(-1)  # [B, n, n], from i to j
    sides = torch.stack([column > row.abs(), (row > 0) & (row >= column.abs())], dim=1)
    distance = (row.square() + column.square()).unsqueeze(1)
    nearest = torch.where(sides, distance, torch.inf).min(-1)
    return nearest.indices.flatten(1), nearest.values.flatten(1) < torch.inf


def disjoint(first: Tensor, second: Tensor, similarity: Tensor, n: int) -> Tensor:
    """Choose the most similar pair, then the most similar one of those left whose tokens are free, and so on.

    All pairs that are the best at both of their tokens are chosen at once, in a fixed number of rounds. Where
    similarity falls steadily over many tokens, these may end before all pairs are chosen.

    Args:
        first: [B, E], a token of each pair, from 0 to n - 1.
        second: [B, E], the other one.
        similarity: [B, E], -inf for pairs that may not be chosen.
        n: number of tokens.

    Returns:
        [B, E] bool, the pairs that are chosen.
    """
    never, chosen = similarity.shape[1], -1  # ranks after and before those of all pairs
    rank = similarity.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank = torch.where(similarity > -torch.inf, rank, never)
    for _ in range(ROUNDS):
        best = rank.new_full((rank.shape[0], n), never)
        best = best.scatter_reduce(1, first, rank, "amin").scatter_reduce(1, second, rank, "amin")
        ahead = torch.minimum(best.gather(1, first), best.gather(1, second))
        taken = (ahead == chosen) & (rank > chosen)
        rank = torch.where((ahead == rank) & (rank < never), chosen, torch.where(taken, never, rank))
    return rank == chosen


def paired(tokens: Tensor, removed: int) -> Tensor:
    """Labels of lines of tokens of which each gives up `removed`: its most similar pairs (0, 1), (2, 3), ...

    Args:
        tokens: [..., n, d], lines of n tokens.
        removed: at most n // 2.

    Returns:
        [..., n] int64, from 0 to n - removed - 1 along every line.
    """
    similarity = F.cosine_similarity(tokens[..., :-1:2, :], tokens[..., 1::2, :], dim=-1)
    best = similarity.argsort(dim=-1, descending=True, stable=True)[..., :removed]
    starts = torch.ones(tokens.shape[:-1], dtype=torch.long, device=tokens.device)
    return starts.scatter(-1, 2 * best + 1, 0).cumsum(-1) - 1


def grid_of(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a full grid of `count` tokens, most like `grid`; zeros where there is none.

    >>> grid_of(168, (14, 14)), grid_of(137, (14, 14))
    ((14, 12), (0, 0))
    """
    rows, columns = grid
    shapes = [(r, count // r) for r in range(1, rows + 1) if count % r == 0 and count // r <= columns]
    return min(shapes, key=lambda s: (abs(s[0] * columns - s[1] * rows), s[1]), default=(0, 0))
