"""The battery of checks that every registered method must pass, for third parties' methods too.

    tokred check mypackage.mymethod:MyReducer

In a test file: `pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)` and `check(MyReducer)`.
"""

from tokred.testing import decisions, invariance, models  # in the order of `CHECKS`
from tokred.testing.battery import CHECKS, check_reducer
from tokred.testing.models import residual_invariant
from tokred.testing.samples import (
    DIM,
    HEADS,
    build,
    decide,
    make_view,
    map_view,
    reduced,
    tiny_plan,
    tiny_vit,
)

__all__ = [
    "CHECKS",
    "DIM",
    "HEADS",
    "build",
    "check_reducer",
    "decide",
    "decisions",
    "invariance",
    "make_view",
    "map_view",
    "models",
    "reduced",
    "residual_invariant",
    "tiny_plan",
    "tiny_vit",
]
