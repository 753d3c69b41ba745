"""Dense controls of lower resolution and of smaller size, and the flags of methods that do not beat them."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from tokred.api import compare
from tokred.core.costs import CostTable
from tokred.core.flops import count
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unreachable
from tokred.evaluation.comparison import Job
from tokred.evaluation.config import Config, Fixed
from tokred.evaluation.controls import lowres, smaller
from tokred.evaluation.significance import judge
from tokred.models import zoo
from tokred.tables.row import BASELINE, Row
from tokred.testing import tiny_vit


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 48), (32, 80)])
@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_lowres_is_the_largest_grid_of_the_images_shape_within_the_budget(size, budget):
    costs = CostTable(tiny_vit(img_size=size))
    control = lowres(costs, budget)
    assert control.flops <= (1 - budget) * costs.dense
    height, width = control.model.backbone.patch_embed.grid_size
    assert control.patches == height * width
    # fvcore's own count of the assembled model on images of that size, without the resizing.
    assert control.flops == count(ReducedViT(control.model.backbone)).total
    # Of all grids of that shape no larger one is cheap enough, by a count of each.
    rows, columns = costs.backbone.patch_embed.grid_size
    grids = [(h, w) for h in range(1, rows + 1) for w in range(1, columns + 1) if (h, w) != (rows, columns)]
    grids = [(h, w) for h, w in grids if abs(w - h * columns / rows) <= 1 or abs(h - w * rows / columns) <= 1]
    assert (height, width) in grids
    for h, w in grids:
        if h * w > height * width:
            assert CostTable(tiny_vit(img_size=(8 * h, 8 * w))).dense > (1 - budget) * costs.dense


def test_lowres_runs_the_same_weights_on_smaller_images(images):
    backbone = tiny_vit()
    control = lowres(CostTable(backbone), 0.5)
    size = control.model.backbone.patch_embed.img_size
    own = tiny_vit(img_size=size)
    own.load_state_dict({k: v for k, v in backbone.state_dict().items() if k != "pos_embed"}, strict=False)
    resampled = timm.layers.resample_abs_pos_embed(
        backbone.pos_embed, own.patch_embed.grid_size, backbone.patch_embed.grid_size, num_prefix_tokens=1
    )
    own.pos_embed.data.copy_(resampled)
    with torch.inference_mode():
        expected = own(F.interpolate(images, size, mode="bicubic", antialias=True))
        torch.testing.assert_close(control.model(images), expected, rtol=1e-5, atol=1e-5)
    shared = {id(p) for p in backbone.parameters()}
    assert [name for name, p in control.model.backbone.named_parameters() if id(p) not in shared] == [
        "pos_embed"
    ]
    assert backbone.patch_embed.img_size == (48, 48)  # the model itself is as it was


def test_lowres_that_no_grid_reaches():
    with pytest.raises(Unreachable, match=r"lowres cannot save 99\.0%"):
        lowres(CostTable(tiny_vit()), 0.99)


@pytest.mark.slow
def test_smaller_is_the_next_model_of_the_family_with_weights_at_hand():
    loaded = zoo.load_shipped("deit_s")
    control = smaller(loaded)
    assert control.options["model"] == "deit_t"
    assert control.flops == CostTable(zoo.build("deit_t", num_classes=10)).dense
    assert smaller(zoo.load_shipped("deit_t")) is None  # there is none below
    file = zoo.load_file("deit_s", zoo.SHIPPED / "deit_s.safetensors")
    assert smaller(file) is None  # a file's smaller counterparts are unknown
    assert smaller(replace(loaded, model=zoo.build("deit_s", num_classes=7))) is None  # other classes


@pytest.mark.usefixtures("shared_costs")
def test_controls_are_in_every_table_and_marked():
    rows = {
        row.method: row
        for row in compare("deit_t", 0.3, methods=("lotm",), limit=4, batch_size=4, workers=0).rows
    }
    assert set(rows) == {BASELINE, "lotm", "random", "lowres"}
    assert [name for name, row in rows.items() if row.control] == [
        name for name in rows if name in ("random", "lowres")
    ]
    assert rows["lowres"].reduction >= 0.3
    assert rows["lowres"].options == "size=176x192"
    assert rows["lotm"].unbeaten == "random lowres"  # four images show nothing
    without = compare("deit_t", 0.3, methods=("lotm",), limit=4, batch_size=4, workers=0, controls=False).rows
    assert [row.method for row in without] == [BASELINE, "lotm"]


def row(method, budget=0.3, **more):
    return Row(method, budget=budget, **more)


def test_judge_asks_for_significance():
    n = 200
    rng = np.random.default_rng(0)
    strong = rng.random(n) < 0.95
    weak = strong & (rng.random(n) < 0.8)
    near = strong.copy()
    near[np.flatnonzero(strong)[:2]] = False  # two images fewer: not told apart
    rows = [
        row(BASELINE, None),
        row("a"),
        row("b"),
        row("c"),
        row("lowres", control=True),
        row("smaller", None, control=True),
    ]
    flags = judge(rows, {0: strong, 1: strong, 2: near, 3: weak, 4: weak, 5: near}, np.arange(n))
    assert [flag.unbeaten for flag in flags] == ["", "smaller", "smaller", "lowres smaller", "", ""]
    assert not any(flag.best for flag in flags)  # a and b are not told apart

    def best(rows, correct):
        flags = judge(rows, correct, np.arange(n))
        return [row.method for row, flag in zip(rows, flags, strict=True) if flag.best]

    assert best(rows, {0: strong, 1: strong, 3: weak, 4: weak, 5: near}) == ["a"]
    rows[1] = replace(rows[1], unfitted=True)
    assert best(rows, {0: strong, 1: strong, 2: near, 3: weak, 4: weak}) == ["b"]
    rows[2] = replace(rows[2], reduction=0.25)  # of the budget of 0.3
    assert best(rows, {0: strong, 2: near, 3: weak, 4: weak}) == []


def test_judge_counts_groups_and_budgets_apart():
    n = 60
    better, worse = np.ones(n, bool), np.arange(n) % 3 > 0
    rows = [row("a", 0.2), row("b", 0.2), row("a", 0.4), row("random", 0.4, control=True)]
    flags = judge(rows, {0: better, 1: worse, 2: worse, 3: better}, np.arange(n))
    assert [flag.best for flag in flags] == [True, False, False, False]
    assert [flag.unbeaten for flag in flags] == ["", "", "random", ""]
    flags = judge(rows, {0: better, 1: worse}, np.zeros(n))  # one digit: a single pair of results
    assert not any(flag.best for flag in flags)


@pytest.mark.usefixtures("shared_costs")
def test_two_plans_of_one_name_are_refused():
    """Or the outcomes of one would stand in the rows of both."""
    settings = {"methods": ("topk",), "limit": 2, "batch_size": 2, "workers": 0, "controls": False}
    with pytest.raises(TokredError, match=r"Two candidates have the name topk@0\.5"):
        compare("deit_t", (0.5, 0.3), fixed=(Fixed("topk", 0.5),), **settings)
    with pytest.raises(TokredError, match=r"Two candidates have the name topk@0\.5"):
        compare("deit_t", 0.3, fixed=(Fixed("topk", 0.5), Fixed("topk", 0.5)), **settings)


def test_a_row_that_costs_more_than_its_budget_beats_no_control_of_it():
    n = 100
    better, worse = np.ones(n, bool), np.arange(n) % 3 > 0
    rows = [
        row("a", reduction=0.3),
        row("b", reduction=0.1),
        row("lowres", reduction=0.33, control=True),
        row("smaller", None, control=True),
    ]
    flags = judge(rows, {0: better, 1: better, 2: worse, 3: worse}, np.arange(n))
    assert [flag.unbeaten for flag in flags] == ["", "lowres", "", ""]


@pytest.mark.usefixtures("shared_costs")
def test_the_configuration_says_whether_controls_were_asked_for():
    """Also where there is none that can run: the run is made again from what it says."""
    for asked in (True, False):
        job = Job(Config("deit_t", (0.3,), ("lotm",), controls=asked, limit=2))
        assert job.configuration["controls"] is asked
        assert list(job.configuration["control_options"]) == (["lowres"] if asked else [])
