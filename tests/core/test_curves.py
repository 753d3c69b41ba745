"""Curves through a grid: the classical Hilbert curve by its bits, and what holds on any grid."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokred
from tokred.core.curves import along
from tokred.testing import tiny_vit

CPU = torch.device("cpu")


def hilbert_place(step, side):
    """Column and row of a step of Hilbert's curve through a square whose side is a power of two."""
    column = row = 0
    size = 1
    while size < side:
        right, down = step // 2 % 2, (step ^ step // 2) % 2
        if not down:
            if right:
                column, row = size - 1 - column, size - 1 - row
            column, row = row, column
        column, row = column + size * right, row + size * down
        step, size = step // 4, 2 * size
    return column, row


def places(curve, rows, columns):
    order = along(curve, (rows, columns), rows * columns, CPU).tolist()
    assert sorted(order) == list(range(rows * columns))
    return [divmod(patch, columns) for patch in order]


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32])
def test_on_squares_of_powers_of_two_it_is_hilberts_curve(side):
    want = [hilbert_place(step, side) for step in range(side * side)]
    passed = places("hilbert", side, side)
    assert passed in (want, [(column, row) for row, column in want])


@given(st.integers(1, 40), st.integers(1, 40))
def test_neighbours_in_the_order_are_neighbours_in_the_grid(rows, columns):
    for curve in ("snake", "hilbert"):
        passed = places(curve, rows, columns)
        steps = [abs(a - c) + abs(b - d) for (a, b), (c, d) in pairwise(passed)]
        diagonal = [step for step in steps if step != 1]
        odd_by_even = max(rows, columns) % 2 == 1 and min(rows, columns) % 2 == 0
        assert diagonal in ([], [2]) if curve == "hilbert" and odd_by_even else diagonal == []


def test_a_run_of_hilberts_curve_is_compact():
    """Of 49 patches in a row of the order, a snake covers more rows than columns allow."""

    def extent(curve):
        passed = places(curve, 14, 14)
        parts = [passed[start : start + 49] for start in range(0, 196, 49)]
        return max(max(max(side) - min(side) for side in zip(*part, strict=True)) for part in parts)

    assert extent("hilbert") < extent("snake") == 13


@pytest.mark.slow
def test_a_model_with_few_patches_is_planned_too():
    model = tiny_vit(img_size=32)
    reduced = tokred.reduce(model, "lotm", 0.2, stages=(2, 3), curve="snake", weighted=True)
    assert reduced.plan.tokens[-1] < model.patch_embed.num_patches == 16


def test_patches_that_a_grid_lacks_are_left_out():
    assert along("snake", (3, 3), 7, CPU).tolist() == [0, 1, 2, 5, 4, 3, 6]
