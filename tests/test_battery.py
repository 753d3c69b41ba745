"""Every registered method passes the battery; a new one is covered by existing."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from tokred.core import registry
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep, Merge
from tokred.testing import CHECKS, check_reducer, make_view, residual_invariant

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("method", registry.names())
def test_battery(method, check):
    CHECKS[check](registry.get(method))


class KeepsFirst(Reducer):
    """Keep the first tokens."""

    def forward(self, view):
        return Keep(view.x.new_zeros(view.x.shape[:2]).argsort(dim=1, stable=True)[:, : self.keep], self.n)


def test_a_third_party_class_passes_unregistered():
    assert check_reducer(KeepsFirst) == {}


class DropsAndMerges(Reducer):
    """Drop the least attended tokens of some images, and merge those of others into the most attended one."""

    needs_cls = True

    def forward(self, view):
        score = view.cls_attention
        place = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        flat = score.var(1, keepdim=True) < 1e-3
        return Merge(torch.where(place < self.keep, place, flat.long() - 1), self.keep, view.size, drops=True)


def test_a_third_party_class_may_drop_and_merge_in_one_decision():
    assert check_reducer(DropsAndMerges) == {}
    view = make_view(seed=5, batch=8)
    label = DropsAndMerges(16, 9, 48, 3)(view).labels()
    assert 0 < (label == -1).any(1).sum() < 8


class Broken(KeepsFirst):
    """Edits its view, looks at its batch mates, and keeps too many."""

    def forward(self, view):
        view.x.add_(view.x.mean(0, keepdim=True))
        return Keep(view.x.norm(dim=-1).argsort(1)[:, : self.keep + 1], self.n)


def test_the_battery_finds_what_is_wrong():
    problems = check_reducer(Broken)
    assert {"output_count", "view_untouched", "batch_slice", "deterministic"} <= set(problems)
    assert "documented" not in problems


class Hoards(KeepsFirst):
    """Keep what was decided."""

    def forward(self, view):
        self.last = super().forward(view)
        return self.last


class Counts(KeepsFirst):
    """Count calls in a buffer."""

    def __init__(self, n, keep, dim, heads):
        super().__init__(n, keep, dim, heads)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, view):
        self.calls += 1
        return super().forward(view)


@pytest.mark.parametrize("cls", [Hoards, Counts])
def test_the_battery_finds_what_is_kept_of_a_call(cls):
    assert "keeps_nothing" in check_reducer(cls)


class Undocumented(KeepsFirst):
    """no sentence"""

    def __init__(self, n, keep, dim, heads, strength):
        super().__init__(n, keep, dim, heads)


def test_the_battery_asks_for_a_docstring_and_keyword_options():
    assert "documented" in check_reducer(Undocumented)


@pytest.mark.slow
def test_the_documentation_is_what_the_methods_say():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", text, flags=re.M))
    measured = {name: residual_invariant(registry.get(name)) for name in registry.names()}
    assert table == {name: "yes" if invariant else "no" for name, invariant in measured.items()}
    assert not measured["dpcknn"]
    written = runpy.run_path(str(DOCS / "methods.py"))["page"](measured)
    assert text == written, "run `python docs/methods.py`"


class ByNorm(KeepsFirst):
    """Keep the tokens whose norms are nearest to 5."""

    def forward(self, view):
        away = (view.x.norm(dim=-1) - 5).abs()
        return Keep(away.argsort(dim=1, stable=True)[:, : self.keep], self.n)


def test_a_method_with_an_absolute_size_is_not_invariant():
    assert residual_invariant(KeepsFirst)
    assert not residual_invariant(ByNorm)
