"""Every method meets every budget that it can reach, within 0.1 points and never above it."""

import functools
import itertools
import re

import numpy as np
import pytest
import timm
import torch
from helpers.methods import FEW_QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

import tokred
from tokred.core import registry, stored_counts
from tokred.core.costs import CostTable
from tokred.core.flops import count
from tokred.core.match import match, match_each
from tokred.core.plan import Plan, resolve_stages, uniform_counts
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unreachable, UnsupportedModel
from tokred.tables.row import TOLERANCE
from tokred.testing import tiny_vit

TINY, SMALL = "deit_tiny_patch16_224", "deit_small_patch16_224"


@functools.cache
def table(name):
    """The cost table of a model of timm, made when a test first asks for it."""
    return CostTable(timm.create_model(name))


@pytest.mark.parametrize("method", FEW_QUICK)
@pytest.mark.parametrize(("model", "budget"), [
    (TINY, 0.3),
    pytest.param(TINY, 0.45, marks=pytest.mark.slow),
    pytest.param(TINY, 0.05, marks=pytest.mark.slow),
])  # fmt: skip
def test_within_a_tenth_of_a_point(method, model, budget):
    costs = table(model)
    found = match(costs, method, budget)
    assert 0 <= found.gap <= TOLERANCE
    assert found.flops == costs.plan(found.plan)
    counts = (196, *found.plan.tokens)
    assert all(registry.get(method).floor(n) <= keep <= n for n, keep in itertools.pairwise(counts))


@pytest.mark.parametrize("method", FEW_QUICK)
@pytest.mark.parametrize(("model", "arguments"), [
    (TINY, {"budget": 0.3}),
    pytest.param(TINY, {"budget": 0.17, "stages": (3, 8)}, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_plans_cost_is_fvcores_trace(method, model, arguments):
    costs = table(model)
    found = match(costs, method, **arguments)
    counted = count(ReducedViT(costs.backbone, found.plan))
    assert (found.flops, found.reducer_flops) == (counted.total, counted.reducers)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.1, 0.3])
def test_a_cost_that_no_polynomial_describes(budget):
    found = match(table(TINY), "lotm[window=4]", budget)  # windows of an odd length at the end
    assert 0 <= found.gap <= TOLERANCE
    assert count(ReducedViT(table(TINY).backbone, found.plan)).total == found.flops


@pytest.mark.slow
@settings(max_examples=12)
@given(st.floats(0.02, 0.6), st.sampled_from(["topk", "dpcknn", "evit"]))
def test_any_budget(budget, method):
    found = match(table(TINY), method, budget)
    assert 0 <= found.gap <= TOLERANCE


class Quarter(Reducer):
    """Remove at most a quarter of the tokens."""

    @classmethod
    def floor(cls, n):
        return n - n // 4

    def forward(self, view):
        return Keep(torch.arange(self.keep).expand(len(view.x), -1), self.n)


class Single(Quarter):
    """Remove at most one token."""

    @classmethod
    def floor(cls, n):
        return max(1, n - 1)


class Cubic(Quarter):
    """Compute something that no quadratic describes."""

    def forward(self, view):
        cube = torch.einsum("bnc,bmc,bkc->bnmk", view.x[..., :1], view.x[..., :1], view.x[..., :1])
        return Keep(
            torch.arange(self.keep).expand(len(view.x), -1)
            + 0 * cube[:, :1, :1, : self.keep].squeeze().long(),
            self.n,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "budget", "stages"),
    [(Quarter, 0.1, (4, 7, 10)), (Single, 0.02, tuple(range(1, 13))), (Cubic, 0.1, (3, 6))],
)
def test_methods_of_others_never_cost_more_than_the_target(cls, budget, stages, monkeypatch):
    monkeypatch.setitem(registry._classes, "other", cls)
    monkeypatch.setattr(cls, "name", "other")
    costs = CostTable(table(TINY).backbone)
    found = match(costs, "other", budget, stages=stages)
    assert found.gap >= 0
    assert count(ReducedViT(costs.backbone, found.plan)).total == found.flops


def test_a_decision_that_cannot_be_applied_is_named_by_its_rule():
    class TooFar(Quarter):
        """Keep tokens that are not there."""

        def forward(self, view):
            kept = torch.arange(self.n, self.n + self.keep).expand(len(view.x), -1)
            return Keep(kept, self.n)

    with pytest.raises(TokredError, match="Keep's index must lie between 0 and"):
        CostTable(tiny_vit()).stage(Plan(TooFar, (2,), (30,)), 2, 36, 30)


@pytest.mark.slow
def test_the_knob_that_was_really_applied():
    found = match(table(SMALL), "lotm", 0.45, protocol="common")
    removed = [a - b for a, b in itertools.pairwise((196, *found.plan.tokens))]
    assert found.knob == " ".join(map(str, removed))
    kept = match(table(SMALL), "topk", 0.3)
    uniform = uniform_counts(registry.get("topk"), 196, 3, float(kept.knob))
    assert max(abs(a - b) for a, b in zip(uniform, kept.plan.tokens, strict=True)) <= 8


def test_matching_leaves_every_mode_of_the_model_alone():
    model = tiny_vit().train()
    model.blocks[1].eval()
    try:
        reduced = tokred.reduce(model, "lotm", 0.2, stages=(2, 3))
        assert reduced.training
        assert model.training
        assert model.blocks[0].mlp.training
        assert not model.blocks[1].training
    finally:
        model.eval()


def test_the_uniform_plan_wins_where_it_is_close_enough():
    costs = table(SMALL)
    exact = 1 - costs.plan(Plan("lotm", (4, 7, 11), (156, 116, 76))) / costs.dense
    found = match(costs, "lotm", exact - 1e-6)
    assert found.plan.tokens == (156, 116, 76)
    assert found.plan.knob == 40


@pytest.mark.parametrize("method", FEW_QUICK)
def test_common_protocol_and_own_stages(method):
    costs = table(TINY)
    assert match(costs, method, 0.3, protocol="common").plan.stages == (4, 7, 10)
    assert match(costs, method, 0.25, stages=(5, 3)).plan.stages == (3, 5)


def test_where_no_counts_come_close_the_gap_is_shown():
    """One stage on a small model moves in steps of more than 0.1 points."""
    costs = CostTable(tiny_vit())
    found = match(costs, "topk", 0.2, stages=(2,))
    one_more = costs.plan(Plan("topk", (2,), (found.plan.tokens[0] + 1,)))
    assert found.flops <= (1 - 0.2) * costs.dense < one_more
    assert found.gap > TOLERANCE


def test_out_of_reach_tells_the_most():
    costs = table(SMALL)
    most = 1 - costs.plan(Plan("lotm", (4, 7, 11), (98, 49, 25))) / costs.dense
    with pytest.raises(
        Unreachable, match=rf"lotm at layers 4 7 11 can save at most {most:.1%}.*not 60.0%.*--stages"
    ):
        match(costs, "lotm", 0.6)


@pytest.mark.parametrize("budget", [0, 1, -0.1, 30, float("nan")])
def test_budgets_outside_the_open_unit_interval(budget):
    with pytest.raises(TokredError, match="between 0 and 1"):
        match(table(TINY), "lotm", budget)


def test_a_model_without_cls_token():
    costs = CostTable(tiny_vit(class_token=False, global_pool="avg"))
    with pytest.raises(UnsupportedModel, match="CLS"):
        match(costs, "evit", 0.2, stages=(1, 2))
    assert match(costs, "lotm", 0.2, stages=(1, 2)).reduction >= 0.2


def test_schedules_by_hand():
    lotm, topk, evit, tome = map(registry.get, ("lotm", "topk", "evit", "tome"))
    assert uniform_counts(topk, 196, 3, 0.7) == (137, 96, 67)
    assert uniform_counts(topk, 196, 3, 0.25) == (49, 12, 3)
    assert uniform_counts(evit, 196, 3, 0.7) == (138, 97, 68)
    assert uniform_counts(lotm, 196, 3, 48) == (148, 100, 52)
    assert uniform_counts(lotm, 196, 3, 60) == (136, 76, 38)  # half of what is left, never more
    assert uniform_counts(tome, 196, 12, 16) == (180, 164, 148, 132, 116, 100, 84, 68, 52, 36, 20, 10)
    assert uniform_counts(tome, 196, 4, 1.5) == (195, 193, 192, 190)


def test_stages_by_protocol():
    assert resolve_stages(registry.get("lotm"), 12) == (4, 7, 11)
    assert resolve_stages(registry.get("tome"), 12) == tuple(range(1, 13))
    assert resolve_stages(registry.get("tome"), 12, "common") == (4, 7, 10)
    with pytest.raises(TokredError, match="layers from 1 to 4"):
        resolve_stages(registry.get("lotm"), 4)
    with pytest.raises(TokredError, match="Did you mean: native"):
        resolve_stages(registry.get("lotm"), 12, "nativ")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A cache of counts of its own: a function that forgets what this process knows of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts = functools.cache(stored_counts.StoredCounts)
    monkeypatch.setattr(stored_counts, "shared", counts)
    return counts.cache_clear


def no_trace(*arguments):
    pytest.fail("A reducer was counted again")


@pytest.mark.slow
def test_counts_are_kept_for_other_tables_and_other_processes(stored, monkeypatch, tmp_path):
    matches, _ = match_each(CostTable(tiny_vit()), ("lotm", "tome"), 0.2, stages=(2, 3))
    monkeypatch.setattr(CostTable, "_counted", no_trace)
    again, _ = match_each(CostTable(tiny_vit()), ("lotm", "tome"), 0.2, stages=(2, 3))
    stored()
    assert matches == again == match_each(CostTable(tiny_vit()), ("lotm", "tome"), 0.2, stages=(2, 3))[0]
    stored()
    with pytest.raises(pytest.fail.Exception, match="counted again"):
        match(CostTable(tiny_vit(num_heads=1)), "lotm", 0.2, stages=(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "[]", '{"counts": 1}', "[" * 10**5, '{"a": NaN, "software": {}}'])
def test_a_damaged_cache_is_ignored(damage, stored, tmp_path):
    (tmp_path / "tokred").mkdir()
    (tmp_path / "tokred" / "costs.json").write_text(damage)
    costs = CostTable(tiny_vit())
    found = match_each(costs, ("lotm",), 0.2, stages=(2, 3))[0]["lotm"]
    assert found.flops == count(ReducedViT(costs.backbone, found.plan)).total
    stored()
    assert stored_counts.shared()._known


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_left_alone(stored, monkeypatch, tmp_path):
    (tmp_path / "tokred").write_text("a file where the folder would be")
    assert match_each(CostTable(tiny_vit()), ("lotm",), 0.2, stages=(2, 3))[0]
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "tokred"))
    stored()
    assert match_each(CostTable(tiny_vit()), ("lotm",), 0.2, stages=(2, 3))[0]


def test_counts_of_other_software_and_of_other_peoples_methods_are_not_kept(stored, monkeypatch):
    costs = CostTable(tiny_vit())
    costs.stage(Plan(Quarter, (2,), (8,)), 2, 9, 8)
    assert not stored_counts.shared()._known
    match_each(costs, ("lotm",), 0.2, stages=(2, 3))
    monkeypatch.setattr(stored_counts, "code_hash", lambda: "other code")
    stored()
    assert not stored_counts.shared()._known


def test_options_that_ask_for_more_tokens_than_there_are_are_refused_at_the_first_stage():
    model = tiny_vit()
    sentence = "dpcknn.neighbors must be at most 36, the tokens of the first stage, got 1000"
    with pytest.raises(TokredError, match=sentence):
        tokred.reduce(model, "dpcknn", 0.2, stages=(2, 3), neighbors=1000)
    with pytest.raises(TokredError, match=sentence):
        ReducedViT(model, Plan("dpcknn", (2,), (30,), {"neighbors": 1000}))
    assert tokred.reduce(model, "dpcknn", 0.2, stages=(2, 3), neighbors=36)  # later stages have fewer


@pytest.mark.parametrize(("method", "option"), [("kmedoids", "iterations"), ("sinkhorn", "iterations")])
def test_options_that_would_take_forever_are_refused(method, option):
    with pytest.raises(TokredError, match=f"{method}.{option} must lie between . and 100, got 1000000000"):
        match(CostTable(tiny_vit()), method, 0.2, stages=(2, 3), options={option: 10**9})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": None}, "registered name, such as 'lotm'; got None"),
        ({"method": ["tome"]}, "registered name"),
        ({"protocol": 1}, "Unknown protocol '1'"),
        ({"stages": 3}, "layer numbers, such as"),
        ({"stages": "2 3"}, "layer numbers, such as"),
        ({"stages": (2.0, 3.0)}, "layer numbers, such as"),
        ({"stages": (None,)}, "layer numbers, such as"),
        ({"stages": ()}, "layers from 1 to 4 of this model, got none"),
        ({"seed": "1"}, "A seed is a whole number"),
        ({"seed": 1.5}, "A seed is a whole number"),
        ({"seed": 10**30}, "A seed is a whole number"),
        ({"adapter": 3}, "path of its file or folder"),
        ({"adapter": "x" * 5000}, "No adapter at"),
        ({"model": type(tiny_vit())}, "not a standard timm VisionTransformer"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_in_one_sentence(arguments, sentence):
    given = {"model": tiny_vit(), "method": "tome", "budget": 0.2, "stages": (2, 3), **arguments}
    with pytest.raises(TokredError, match=re.escape(sentence)) as error:
        tokred.reduce(**given)
    assert "\n" not in str(error.value)


def test_errors_name_arguments_in_python_and_flags_elsewhere():
    settings = {"stages": (2,), "protocol": "native"}
    with pytest.raises(Unreachable, match=r"set more or earlier layers with stages\.$"):
        tokred.reduce(tiny_vit(), "tome", 0.9, **settings)
    with pytest.raises(Unreachable, match=r"set more or earlier layers with --stages\.$"):
        match(CostTable(tiny_vit()), "tome", 0.9, **settings)
    with pytest.raises(TokredError, match="workers is the number of processes .* got -1"):
        tokred.compare("deit_t", workers=-1)


def test_stages_and_seeds_may_be_numpy_integers():
    reduced = tokred.reduce(tiny_vit(), "tome", 0.2, stages=np.array([3, 2]), seed=np.int64(3))
    assert reduced.plan.stages == (2, 3)
    assert type(reduced.plan.stages[0]) is int
