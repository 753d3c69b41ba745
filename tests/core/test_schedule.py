"""Schedules: any method at any layers, with uniform, decreasing or explicit token counts."""

import functools
from itertools import pairwise

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

import tokred
from tokred import configs
from tokred.core import registry, schedule
from tokred.core.costs import CostTable
from tokred.core.flops import count
from tokred.core.match import at_tokens, match
from tokred.core.plan import decreasing_counts, resolve_stages
from tokred.core.reducer import Reducer
from tokred.core.schedule import Schedule
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unreachable
from tokred.models import zoo
from tokred.tables.row import TOLERANCE
from tokred.testing import tiny_vit

DECREASING = Schedule(shape="decreasing")
PRINTED = {  # billions of FLOPs that DiffRate's authors print for their schedules
    "diffrate_t_0.9": 0.902,
    "diffrate_s_3.1": 3.108,
    "diffrate_s_2.9": 2.905,
    "diffrate_b_12.5": 12.522,
    "diffrate_b_11.5": 11.517,
}


@functools.cache
def table():
    return CostTable(timm.create_model("deit_tiny_patch16_224"))


def removed(n, tokens):
    return [before - after for before, after in pairwise((n, *tokens))]


@pytest.mark.parametrize("name", PRINTED)
def test_diffrates_schedules_cost_what_is_printed(name):
    chosen = schedule.load(name)
    dim = {"deit_t": 192, "deit_s": 384, "deit_b": 768}[chosen.model]
    kept, n, flops = dict(zip(chosen.stages, chosen.tokens, strict=True)), 197, 196 * 768 * dim + 1000 * dim
    for layer in range(1, 13):
        after = 1 + kept.get(layer, n - 1)
        flops += 4 * n * dim**2 + 2 * n**2 * dim + 8 * after * dim**2
        n = after
    assert flops / 1e9 == pytest.approx(PRINTED[name], abs=6e-4 * PRINTED[name])
    assert n == 3  # of which one is the CLS token


def test_shipped_schedules_say_what_they_are():
    assert set(configs.names("schedules")) == {*PRINTED, "decreasing"}
    assert schedule.load("decreasing") == Schedule(name="decreasing", shape="decreasing")
    assert all(20 < len(configs.summary("schedules", name)) < 130 for name in configs.names("schedules"))


@given(st.integers(1, 12), st.integers(0, 195), st.sampled_from(["topk", "lotm", "tome"]))
def test_decreasing_counts(stages, total, method):
    cls = registry.get(method)
    counts = decreasing_counts(cls, 196, stages, total)
    steps = removed(196, counts)
    assert all(before >= after >= 0 for before, after in pairwise(steps))
    if method == "topk":
        assert sum(steps) == total
        share = total / (stages * (stages + 1) / 2)
        assert all(abs(step - share * (stages - k)) < 1 + share for k, step in enumerate(steps))
    assert all(cls.floor(n) <= keep <= n for n, keep in pairwise((196, *counts)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lotm", "topk"])
@pytest.mark.parametrize("stages", [None, "all", (2, 5)])
@pytest.mark.parametrize("shape", [DECREASING, Schedule()])
def test_every_shape_meets_the_budget_at_all_layers(method, stages, shape):
    found = match(table(), method, 0.25, stages=stages, schedule=shape)
    assert 0 <= found.gap <= TOLERANCE
    assert found.flops == table().plan(found.plan)
    steps = removed(196, found.plan.tokens)
    if shape is DECREASING:
        fewer = sum(before > after for before, after in pairwise(steps))
        assert fewer == len(steps) - 1 if len(steps) <= 3 else fewer >= 8  # of 11: tokens are whole
        assert steps == sorted(steps, reverse=True)
        assert found.knob == " ".join(map(str, steps))
    if stages == "all":
        assert found.plan.stages == tuple(range(1, 13))
    elif stages:
        assert found.plan.stages == stages


def test_a_decreasing_schedule_has_a_limit_of_its_own():
    with pytest.raises(Unreachable, match="at layers 4 7 10 in a decreasing schedule can save at most 54.5%"):
        match(table(), "topk", 0.7, schedule=DECREASING)


def test_few_tokens_in_many_layers():
    found = match(table(), "topk", 0.05, stages="all", schedule=DECREASING)
    assert 0 <= found.gap <= TOLERANCE
    assert all(before >= after for before, after in pairwise(removed(196, found.plan.tokens)))


def test_every_layer_is_one_after_an_attention():
    assert resolve_stages(registry.get("topk"), 4, stages="all") == (1, 2, 3, 4)
    assert resolve_stages(registry.get("dpcknn"), 4, stages="all") == (2, 3, 4)


def test_the_cost_of_explicit_counts_is_fvcores_trace():
    found = at_tokens(table(), "evit", (150, 115, 89))
    counted = count(ReducedViT(table().backbone, found.plan))
    assert (found.flops, found.reducer_flops, found.budget) == (counted.total, counted.reducers, None)
    assert (found.knob_name, found.knob) == ("removed", "46 35 26")


@pytest.mark.slow
def test_reduce_takes_names_files_and_mappings(tmp_path):
    model = tiny_vit(depth=4)
    file = tmp_path / "mine.yaml"
    file.write_text("stages: [2, 3]\ntokens: [30, 10]\n")
    for chosen in (str(file), {"stages": [2, 3], "tokens": [30, 10]}, Schedule("", (2, 3), (30, 10))):
        plan = tokred.reduce(model, "topk", schedule=chosen).plan
        assert (plan.stages, plan.tokens) == ((2, 3), (30, 10))
    plan = tokred.reduce(model, "topk", 0.2, stages="all", schedule="decreasing").plan
    assert plan.stages == (1, 2, 3, 4)
    steps = removed(36, plan.tokens)
    assert steps == sorted(steps, reverse=True)


def test_a_schedule_for_another_model_is_refused():
    small = zoo.outline("deit_s")
    assert tokred.reduce(small, "topk", schedule="diffrate_s_3.1").plan.tokens[-1] == 2
    with pytest.raises(TokredError, match="diffrate_t_0.9 is for deit_t, not for deit_small_patch16_224"):
        tokred.reduce(small, "topk", schedule="diffrate_t_0.9")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "decresing"}, "Unknown schedule 'decresing'. Did you mean: decreasing?"),
        ({"schedule": "decreasing", "keep": 0.5}, "keep makes a uniform schedule"),
        ({"schedule": {"tokens": [20, 10, 5]}, "budget": 0.3}, "a schedule may have tokens"),
        ({"schedule": {"stages": [1]}, "stages": [2]}, "has its own layers; leave out stages"),
        ({"schedule": {"tokens": [30, 0]}}, "at least 1, such as"),
        ({"schedule": {"tokens": [30], "stages": [1, 2]}}, "one number for each of 2 stages, got 1"),
        ({"schedule": {"tokens": [30], "shape": "decreasing"}}, "shape has no meaning beside token counts"),
        ({"schedule": {"token": [30]}}, "Unknown setting 'token'. Did you mean: tokens?"),
        ({"schedule": 3}, "A schedule is a name or the path of a YAML file; got 3."),
        ({"schedule": "decreasing", "tokens": (3, 2)}, "Give a schedule or tokens, not both."),
        ({"tokens": (3.5, 2)}, "tokens are whole numbers"),
        ({"tokens": (10,), "stages": (1,), "method": "lotm"}, "between 18 and 36, not to 10 as at layer 1"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(TokredError, match=message):
        tokred.reduce(tiny_vit(depth=4), **{"method": "topk", **settings})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stages: [4, 7]\ntokenz: [3, 2]\n", "In mine.yaml, line 2: Unknown setting 'tokenz'. Did you mean"),
        ("tokens: [3, x]\n", "In mine.yaml, line 1: tokens.1: should be a valid integer"),
        ("# a comment\nstages: 4\n", "In mine.yaml, line 2: stages: should be a valid list, got 4."),
        ("shape: growing\n", "In mine.yaml, line 1: shape: should be 'uniform' or 'decreasing'"),
        ("stages: [4]\ntokens: [3, 2]\n", "In mine.yaml, line 2: tokens needs one number for each of 1"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TokredError) as error:
        schedule.load(str(path))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


class ByImage(Reducer):
    """Decide for each image how many tokens stay."""

    name = "byimage"
    knob = "threshold"


def test_counts_that_depend_on_the_image_take_no_schedule_of_counts(monkeypatch):
    monkeypatch.setitem(registry._classes, "byimage", ByImage)
    with pytest.raises(TokredError, match="depends on the image, so the schedule decreasing is not for it"):
        match(table(), "byimage", 0.3, schedule=DECREASING)
    with pytest.raises(TokredError, match="depends on the image, so the schedule explicit is not for it"):
        at_tokens(table(), "byimage", (30, 20, 10))
