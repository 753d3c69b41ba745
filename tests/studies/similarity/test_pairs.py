"""Pairs of patches against their definitions."""

import itertools

from helpers.similarity import pairs_by_loops
from hypothesis import given
from hypothesis import strategies as st

from tokred.studies.similarity.pairs import Pairs


@given(st.integers(1, 7), st.integers(1, 7))
def test_pairs_are_those_of_their_definitions(rows, columns):
    pairs = Pairs.of(rows, columns)
    expected = pairs_by_loops(rows, columns)
    assert set(pairs.kinds) == set(expected)
    for name, (first, second) in pairs.kinds.items():
        found = list(zip(first.tolist(), second.tolist(), strict=True))
        assert len(found) == len(set(found))  # none twice
        assert set(found) == expected[name]
    for i, j in itertools.product(range(rows * columns), repeat=2):
        apart = abs(i // columns - j // columns) * columns + abs(i % columns - j % columns)
        assert pairs.apart[i * rows * columns + j] == apart


def test_adjacent_pairs_are_those_that_lotm_compares():
    """Whatever LoTM merges when it merges all that it may."""
    from tokred.core.registry import get
    from tokred.testing import make_view

    view = make_view(batch=1, n=9)
    merged = get("lotm")(9, get("lotm").floor(9), 48, 3)(view).label[0].tolist()
    partners = {(i, j) for i, j in itertools.combinations(range(9), 2) if merged[i] == merged[j]}
    assert partners == set(zip(*Pairs.of(3, 3).kinds["adjacent"].tolist(), strict=True))
