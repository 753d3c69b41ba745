"""Counts that depend on the image: padding, costs of single images, and the calibration of the threshold."""

import numpy as np
import pytest
import torch
from helpers.adaptive import Runs, Standouts

import tokred
from tokred.core.calibrate import calibrate, image_flops, set_threshold
from tokred.core.costs import CostTable
from tokred.core.flops import analyse
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unreachable
from tokred.testing import check_reducer, tiny_vit

METHODS = [Standouts, Runs]


def images(count, seed=0):
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def model(cls, threshold=0.5, **options):
    return ReducedViT(tiny_vit(**options), Plan(cls, (2, 3), (36, 36), knob=threshold))


@pytest.mark.parametrize("cls", METHODS)
def test_methods_whose_counts_depend_on_the_image_pass_the_battery(cls):
    assert check_reducer(cls) == {}


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"global_pool": "avg"}], ids=str)
@torch.no_grad()
def test_an_image_alone_has_its_own_tokens_and_the_result_that_it_has_in_a_batch(cls, options):
    reduced = model(cls, **options)
    together = reduced.run(images(6))
    logits = reduced.logits(together)
    counts = together.counts
    assert len(set(counts[:, -1].tolist())) > 1
    assert together.x.shape[1] == reduced.num_prefix + counts[:, -1].max()
    for i in range(6):
        alone = reduced.run(images(6)[i : i + 1])
        own = alone.counts[0]
        assert own.tolist() == counts[i].tolist()
        assert alone.x.shape[1] == reduced.num_prefix + own[-1]
        torch.testing.assert_close(reduced.logits(alone), logits[i : i + 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.size[0], together.size[i, : own[-1]])
        assert (together.size[i, own[-1] :] == 0).all()
        assert (alone.size > 0).all()


@torch.no_grad()
def test_the_counts_are_those_of_the_formula():
    reduced, x = model(Standouts), images(4)
    state = reduced.advance(reduced.embed(x), stop=(2, "mid"))
    score = reduced.stage_list()[0].view(state).cls_attention.numpy()
    want = (score >= 0.5 * score.max(1, keepdims=True)).sum(1)
    assert reduced.run(x).counts[:, 0].tolist() == want.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("cls", METHODS)
@torch.no_grad()
def test_the_cost_of_an_image_is_the_trace_of_the_model_on_it_alone(cls):
    reduced, costs, x = model(cls), CostTable(tiny_vit()), images(4)
    counts = reduced.run(x).counts.numpy()
    traces = [analyse(reduced, x[i : i + 1]) for i in range(4)]
    flops, reducers = image_flops(costs, reduced.plan, counts)
    assert flops.tolist() == [trace.total() for trace in traces]
    assert reducers.tolist() == [trace.total("stages") for trace in traces]


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "budget"), [(Standouts, 0.3), (Standouts, 0.1), (Runs, 0.2)])
def test_calibration_meets_the_budget_in_the_mean(cls, budget):
    reduced, costs = model(cls), CostTable(tiny_vit())
    match = calibrate(reduced, costs, budget, images(40).split(16))
    assert match.reduction == pytest.approx(budget, abs=0.003)  # of 40 images with few tokens
    with torch.no_grad():
        alone = np.concatenate([reduced.run(image[None]).counts.numpy() for image in images(40)])
    assert match.flops == round(image_flops(costs, match.plan, alone)[0].mean())
    assert match.plan.knob == reduced.stage_list()[0].reducer.threshold
    assert match.budget == budget


@pytest.fixture(scope="module")
def scan():
    """What 101 thresholds save of 40 images."""
    reduced, costs, saved = model(Standouts), CostTable(tiny_vit()), []
    for threshold in np.linspace(0, 1, 101):
        set_threshold(reduced, float(threshold))
        with torch.no_grad():
            counts = reduced.run(images(40)).counts.numpy()
        saved.append(1 - image_flops(costs, reduced.plan, counts)[0].mean() / costs.dense)
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.05, 0.25, 0.4])
def test_calibration_finds_what_a_scan_over_all_thresholds_finds(budget, scan):
    assert scan == sorted(scan)
    match = calibrate(model(Standouts), CostTable(tiny_vit()), budget, images(40).split(16))
    place = np.searchsorted(np.linspace(0, 1, 101), match.plan.knob)
    assert scan[place - 1] <= match.reduction <= scan[place]


@pytest.mark.slow
def test_calibration_passes_over_all_images_few_times(monkeypatch):
    seen = []
    advance = ReducedViT.advance
    monkeypatch.setattr(
        ReducedViT,
        "advance",
        lambda self, state, stop=None: seen.append(len(state.x)) or advance(self, state, stop),
    )
    match = calibrate(model(Standouts), CostTable(tiny_vit()), 0.25, images(200).split(50))
    assert match.reduction == pytest.approx(0.25, abs=0.001)
    assert sum(seen) < 9 * 200  # bisection over all takes twice as many


@pytest.mark.slow
def test_calibration_does_not_depend_on_the_batch_size():
    costs = CostTable(tiny_vit())
    plans = [calibrate(model(Standouts), costs, 0.25, images(40).split(size)).plan for size in (1, 12, 40)]
    assert plans[0].knob == plans[1].knob == plans[2].knob


@pytest.mark.slow
def test_reduce_sets_a_threshold_on_images_or_takes_one():
    backbone = tiny_vit().train()
    try:
        met = tokred.reduce(backbone, "ats", 0.2, stages=(2, 3), images=images(24).split(8))
        assert backbone.training
        assert met.backbone is backbone
    finally:
        backbone.eval()
    with torch.no_grad():
        counts = met.run(images(24)).counts.numpy()
        alone = met.run(images(1))
    saved = 1 - image_flops(CostTable(backbone), met.plan, counts)[0].mean() / CostTable(backbone).dense
    assert saved == pytest.approx(0.2, abs=0.005)
    assert alone.x.shape[1] == 1 + alone.counts[0, -1] < 37  # at batch 1 the tokens are gone
    fixed = tokred.reduce(backbone, "ats", stages=(2, 3), threshold=met.plan.knob)
    with torch.no_grad():
        assert torch.equal(fixed(images(5)), met(images(5)))
    assert "tokens depend on the image" in str(fixed.tokred.summary().title)


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        (
            "ats",
            {"budget": 0.3},
            "tokens ats keeps depends on the image: give images, .* or else a threshold",
        ),
        ("ats", {"keep": 0.5}, "tokens ats keeps depends on the image"),
        ("ats", {"threshold": "0.5"}, "tokens ats keeps depends on the image"),
        ("ats", {"threshold": ""}, "tokens ats keeps depends on the image"),
        ("ats", {"threshold": []}, "tokens ats keeps depends on the image"),
        ("ats", {"images": 3}, "tokens ats keeps depends on the image"),
        ("ats", {"images": torch.zeros(0, 3, 48, 48)}, "no image to calibrate"),
        ("ats", {"images": torch.full((2, 3, 48, 48), torch.nan)}, "numbers that are not finite"),
        ("ats", {"threshold": 1.5}, "The knob of ats is a threshold between 0 and 1; got 1.5"),
        ("ats", {"budget": "0.5", "images": []}, "A budget is the fraction of FLOPs"),
        ("ats", {"budget": 0.5, "images": []}, "no image to calibrate"),
        ("ats", {"budget": 0.5, "threshold": 0.5}, "Give one of budget, keep, tokens and threshold"),
        ("lotm", {"threshold": 0.5}, "lotm keeps as many tokens of every image and takes no threshold"),
    ],
)
def test_what_sets_the_counts_is_what_the_method_has(method, settings, sentence):
    with pytest.raises(TokredError, match=sentence):
        tokred.reduce(tiny_vit(), method, stages=(2, 3), **settings)


def test_images_that_are_not_finite_have_logits_that_are_not():
    reduced = tokred.reduce(tiny_vit(), "ats", stages=(2, 3), threshold=0.5)
    assert reduced(torch.full((2, 3, 48, 48), torch.nan)).isnan().all()


def test_no_images_have_no_logits():
    assert model(Standouts)(images(0)).shape == (0, 10)


def test_a_budget_out_of_reach_is_refused():
    reduced = ReducedViT(tiny_vit(), Plan(Standouts, (4,), (36,)))
    with pytest.raises(Unreachable, match="at layers 4 can save at most"):
        calibrate(reduced, CostTable(tiny_vit()), 0.5, [images(3)])
    with pytest.raises(TokredError, match="no image to calibrate"):
        calibrate(reduced, CostTable(tiny_vit()), 0.1, [])


class Cubic(Standouts):
    """Look at all triples of tokens."""

    def forward(self, view):
        x = view.x.float()
        pairs = torch.einsum("bic,bjc->bij", x, x)
        triples = torch.einsum("bij,bjk,bkl->bil", pairs, pairs, pairs)
        return super().forward(view) if triples.shape else None


@pytest.mark.slow
@torch.no_grad()
def test_a_reducer_that_is_not_quadratic_is_counted_at_every_number_of_tokens():
    reduced, costs, x = model(Cubic), CostTable(tiny_vit()), images(3)
    counts = reduced.run(x).counts.numpy()
    traces = [analyse(reduced, x[i : i + 1]).total() for i in range(3)]
    assert image_flops(costs, reduced.plan, counts)[0].tolist() == traces
