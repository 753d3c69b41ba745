"""Options are typed once and complete: however they are written, equal options are one value."""

from typing import Literal

import pytest

from tokred.core import registry
from tokred.core.options import (
    changed_options,
    complete_options,
    options_arguments,
    options_text,
    typed_options,
)
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.errors import TokredError, UnknownName


class Every(Reducer):
    """Have an option of every kind."""

    name = "every"

    def __init__(
        self,
        n,
        keep,
        dim,
        heads,
        *,
        switch: bool = False,
        count: int = 3,
        factor: float = 0.5,
        word: str = "a",
        grid: Literal[2, 4] = 2,
        limit: int | None = None,
    ):
        super().__init__(n, keep, dim, heads)


DEFAULTS = {"switch": False, "count": 3, "factor": 0.5, "word": "a", "grid": 2, "limit": None}


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, {}),
        ({"switch": "1"}, {"switch": True}),
        ({"switch": "True"}, {"switch": True}),
        ({"switch": "true"}, {"switch": True}),
        ({"switch": 1}, {"switch": True}),
        ({"switch": "false"}, {}),
        ({"count": "7"}, {"count": 7}),
        ({"count": 7.0}, {"count": 7}),
        ({"factor": "1"}, {"factor": 1.0}),
        ({"factor": 1}, {"factor": 1.0}),
        ({"word": 5}, {"word": "5"}),
        ({"grid": "4"}, {"grid": 4}),
        ({"limit": "9"}, {"limit": 9}),
        ({"limit": "None"}, {}),
        (DEFAULTS, {}),
    ],
)
def test_one_value_however_it_is_written(options, change):
    complete = complete_options(Every, options)
    assert complete == {**DEFAULTS, **change}
    assert list(complete) == list(DEFAULTS)
    assert [type(value) for value in complete.values()] == [
        type({**DEFAULTS, **change}[name]) for name in complete
    ]
    assert complete_options(Every, complete) == complete
    assert changed_options(Every, complete) == change
    assert typed_options(Every, options) == {name: complete[name] for name in options}
    words = options_arguments(Every, complete)
    assert words[::2] == ["--set"] * len(change)
    written = dict(word.removeprefix("every.").split("=") for word in words[1::2])
    assert complete_options(Every, written) == complete  # there and back


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swich": True}, "Unknown option of every 'swich'. Did you mean: switch"),
        ({"switch": "perhaps"}, "every.switch must be true or false"),
        ({"switch": 2}, "every.switch must be true or false"),
        ({"count": "many"}, "every.count must be of type int"),
        ({"count": 2.7}, "every.count must be of type int"),
        ({"count": float("nan")}, "every.count must be of type int"),
        ({"count": float("inf")}, "every.count must be of type int"),
        ({"count": None}, "every.count must be of type int"),
        ({"count": True}, "every.count must be of type int"),
        ({"factor": True}, "every.factor must be of type float"),
        ({"factor": [1]}, "every.factor must be of type float"),
        ({"grid": 3}, "every.grid must be one of 2, 4"),
        ({"limit": "x"}, "every.limit must be of type int"),
    ],
)
def test_what_the_annotation_does_not_allow(options, message):
    with pytest.raises(TokredError, match=message):
        complete_options(Every, options)


def test_a_method_without_options():
    with pytest.raises(UnknownName, match="random has no options, got 'seed'"):
        complete_options(registry.get("random"), {"seed": 1})


def test_a_plan_holds_all_options_as_values():
    plans = [Plan("lotm", (4,), (100,), options) for options in ({}, {"weighted": "0"}, {"weighted": False})]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].options == {
        "order": "inplace",
        "weighted": False,
        "proportional": False,
        "metric": "x",
        "curve": "raster",
        "window": 2,
    }
    assert options_text(plans[0].options) == (
        "order=inplace weighted=False proportional=False metric=x curve=raster window=2"
    )
    with pytest.raises(TokredError, match=r"lotm.order must be one of inplace, append"):
        Plan("lotm", (4,), (100,), {"order": "sideways"})
