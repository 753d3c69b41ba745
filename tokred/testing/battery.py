"""The battery: checks by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tokred.core.reducer import Reducer, View
from tokred.core.reduction import Merge, Reduction
from tokred.errors import TokredError
from tokred.testing.samples import build, make_view

Check = Callable[[type[Reducer]], None]

CHECKS: dict[str, Check] = {}


def check_reducer(cls: type[Reducer], progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Run all checks on a class and return the problems by name of the check; an empty mapping is a pass."""
    problems = {}
    for name, check in CHECKS.items():
        progress(name)
        try:
            check(cls)
        except (Exception, SystemExit) as error:  # a battery reports whatever a method does
            said = isinstance(error, AssertionError | TokredError) and str(error)
            problems[name] = said or f"{type(error).__name__}: {error}"
    return problems


def check(function: Check) -> Check:
    """Add a function to the battery under its own name."""
    CHECKS[function.__name__.removeprefix("check_")] = function
    return function


def expect(condition: bool | Tensor, message: str) -> None:
    """Fail with a message; unlike an assert it also works under python -O."""
    if not bool(condition):
        raise AssertionError(message)


def reachable(cls: type[Reducer], n: int) -> list[int]:
    """A few counts that the class can reach: many, half, the fewest."""
    counts = (n - 1, n - n // 3, n - n // 2, cls.floor(n))
    return sorted({max(cls.floor(n), keep) for keep in counts if keep < n})


def runs(cls: type[Reducer]) -> list[tuple[View, Reducer]]:
    """Views and reducers over even, odd and small counts and 1, 2 and 5 prefix tokens."""
    shapes = [(16, 1), (15, 1), (17, 2), (16, 5), (7, 2), (3, 1)]
    return [
        (make_view(n=n, prefix=prefix, seed=n), build(cls, n, keep))
        for n, prefix in shapes
        for keep in reachable(cls, n)
    ]


def softened(reduction: Reduction) -> bool:
    """Whether tokens count for other sizes than their patches."""
    return isinstance(reduction, Merge) and reduction.mass is not None
