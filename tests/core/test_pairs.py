"""Neighbours and disjoint pairs of tokens against loops."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokred.core.ops import raster
from tokred.core.pairs import beside, disjoint, grid_of, paired


def places(n, seed):
    """Random places of two images, in halves of a patch, with repetitions."""
    return torch.randint(0, 9, (2, n, 2), generator=torch.Generator().manual_seed(seed)) / 2


def nearest(place, i):
    """The nearest token on the right of token i and the nearest below, or None."""
    found = []
    for side in (lambda row, column: column > abs(row), lambda row, column: row > 0 and row >= abs(column)):
        offsets = {j: (row - place[i][0], column - place[i][1]) for j, (row, column) in enumerate(place)}
        there = [(math.hypot(*offset), j) for j, offset in offsets.items() if side(*offset)]
        found.append(min(there)[1] if there else None)
    return found


@given(st.integers(1, 14), st.integers(0, 1000))
def test_neighbours(n, seed):
    position = places(n, seed)
    partner, exists = beside(position)
    for image in range(2):
        place = position[image].tolist()
        want = [side for sides in zip(*(nearest(place, i) for i in range(n)), strict=True) for side in sides]
        got = [j if there else None for j, there in zip(partner[image].tolist(), exists[image], strict=True)]
        assert got == want


def test_on_the_grid_they_are_the_next_in_the_row_and_in_the_column():
    partner, exists = beside(raster(torch.zeros(1, 12, 1), 4)[..., :2])
    pairs = {(i % 12, j) for i, j in enumerate(partner[0].tolist()) if exists[0, i]}
    across = {(i, i + 1) for i in range(12) if i % 4 < 3}
    assert pairs == across | {(i, i + 4) for i in range(8)}


@given(st.integers(2, 12), st.integers(1, 30), st.integers(0, 1000))
def test_the_best_pairs_that_are_disjoint(n, edges, seed):
    rng = torch.Generator().manual_seed(seed)
    first, second = torch.randint(0, n, (2, 2, edges), generator=rng)
    similarity = torch.randint(0, 8, (2, edges), generator=rng).float()  # with ties
    similarity[first == second] = -torch.inf
    chosen = disjoint(first, second, similarity, n)
    for image in range(2):
        free, want = set(range(n)), []
        for edge in sorted(range(edges), key=lambda edge: -similarity[image, edge]):
            ends = {int(first[image, edge]), int(second[image, edge])}
            if similarity[image, edge] > -math.inf and ends <= free:
                free -= ends
                want.append(edge)
        assert chosen[image].nonzero().flatten().tolist() == sorted(want)


def test_where_similarity_falls_steadily_pairs_are_disjoint_all_the_same():
    n = 200
    first = torch.arange(n - 1).unsqueeze(0)
    chosen = disjoint(first, first + 1, -first.float(), n)[0]
    picked = chosen.nonzero().flatten()
    assert picked.tolist() == list(range(0, 2 * len(picked), 2))  # the best ones, without a gap
    assert 5 <= len(picked) < n // 2


def test_lines_of_pairs():
    tokens = torch.tensor([[0.0, 40, 42, 90, 95], [0, 1, 5, 80, 120]]).deg2rad()
    tokens = torch.stack([tokens.cos(), tokens.sin()], dim=-1)
    assert paired(tokens, 1).tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 2, 3]]  # 40 and 48, 1 and 75 degrees
    assert paired(tokens, 2).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2]]


def test_shapes_of_grids():
    assert [grid_of(count, (14, 14)) for count in (196, 182, 168, 144, 132)] == [
        *((14, 14), (14, 13), (14, 12), (12, 12), (12, 11))
    ]
    assert grid_of(21, (3, 9)) == (3, 7)
    assert grid_of(137, (14, 14)) == (0, 0)
