"""FLOP counts against closed forms written out here, unfused attention, and published figures."""

import functools

import pytest
import timm
import torch
from helpers.methods import FEW_QUICK, FIXED
from timm.layers import set_fused_attn
from torch import nn
from torch.nn import functional as F

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.flops import analyse, count
from tokred.core.plan import Plan, resolve_stages, uniform_counts
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep, Merge, Mix
from tokred.core.vit import ReducedViT
from tokred.errors import UncountedOp
from tokred.testing import tiny_vit

#: The cost table of a model, made when a test first asks for it.
table = functools.cache(CostTable)


def closed_form(dim, lengths_attention, lengths_mlp, patches, patch_values, classes, prefix=1):
    """Multiply-accumulates of a ViT: attention 4 N d^2 + 2 N^2 d, MLP 8 N d^2, LayerNorm five per element."""
    total = patches * patch_values * dim
    for attention, mlp in zip(lengths_attention, lengths_mlp, strict=True):
        a, m = attention + prefix, mlp + prefix
        total += 4 * a * dim**2 + 2 * a**2 * dim + 8 * m * dim**2 + 5 * dim * (a + m)
    return total + 5 * dim * (lengths_mlp[-1] + prefix) + dim * classes


@pytest.mark.parametrize(
    ("name", "dim", "published"),
    [
        ("deit_tiny_patch16_224", 192, 1.258),
        pytest.param("deit_small_patch16_224", 384, 4.608, marks=pytest.mark.slow),
        pytest.param("deit_base_patch16_224", 768, 17.583, marks=pytest.mark.slow),
    ],
)
def test_deit(name, dim, published):
    counted = count(ReducedViT(timm.create_model(name)))
    assert counted.total == closed_form(dim, [196] * 12, [196] * 12, 196, 768, 1000)
    assert counted.total / 1e9 == pytest.approx(published, abs=6e-4)
    assert counted.reducers == 0


def test_fused_and_unfused_attention_count_the_same():
    plan = Plan("lotm", (4, 7, 11), (156, 116, 76))
    fused = count(ReducedViT(timm.create_model("deit_tiny_patch16_224"), plan)).total
    set_fused_attn(False)
    try:
        unfused = count(ReducedViT(timm.create_model("deit_tiny_patch16_224"), plan)).total
    finally:
        set_fused_attn(True)
    assert fused == unfused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "published"), [(10, 1.167), (20, 1.078), (30, 0.991), (40, 0.906), (44, 0.873), (48, 0.840)]
)
def test_lotm_on_deit_t(k, published):
    """The specification's table: layers 4, 7, 11, k tokens removed between attention and MLP."""
    plan = Plan("lotm", (4, 7, 11), (196 - k, 196 - 2 * k, 196 - 3 * k))
    counted = count(ReducedViT(timm.create_model("deit_tiny_patch16_224"), plan))
    attention = [196] * 4 + [196 - k] * 3 + [196 - 2 * k] * 4 + [196 - 3 * k]
    mlp = [196] * 3 + [196 - k] * 3 + [196 - 2 * k] * 4 + [196 - 3 * k] * 2
    pairs = sum(
        3 * 192 * (n // 2) for n in (196, 196 - k, 196 - 2 * k)
    )  # one dot product and two norms for each pair
    assert counted.reducers == pairs
    assert counted.total == closed_form(192, attention, mlp, 196, 768, 1000) + pairs
    assert counted.total / 1e9 == pytest.approx(published, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.9, 0.7, 0.5, 0.25])
def test_keep_rate_schedules_between_attention_and_mlp(rate):
    """Published planning figures of DeiT-S at layers 4, 7, 10, which leave LayerNorm out."""
    published = {0.9: 3.960, 0.7: 2.980, 0.5: 2.278, 0.25: 1.699}[rate]
    tokens = uniform_counts(registry.get("topk"), 196, 3, rate)
    total = count(
        ReducedViT(timm.create_model("deit_small_patch16_224"), Plan("random", (4, 7, 10), tokens))
    ).total
    lengths = (
        [196] * 7 + [tokens[0]] * 6 + [tokens[1]] * 6 + [tokens[2]] * 6
    )  # every LayerNorm but the last stage's extra one
    norms = 5 * 384 * sum(n + 1 for n in lengths)
    assert (total - norms) / 1e9 == pytest.approx(published, abs=1.5e-3)


def test_reducers_own_work_in_closed_form():
    n, dim, heads, d = 36, 48, 3, 16
    costs = CostTable(tiny_vit())
    at = {name: costs.stage(Plan(name, (2,), (24,)), 2, n, 24) for name in FIXED}
    assert at["random"] == 0
    assert at["topk"] == at["evit"] == heads * (n + 1) * d  # one query row against all keys
    assert at["tome"] == 18 * 18 * d
    assert at["lotm"] == 3 * dim * 18
    assert at["dpcknn"] == n * n * dim
    assert (
        at["kmedoids"] == heads * (n + 1) ** 2 * d + n * n * dim + 3 * n * n
    )  # the map, the distances, three updates


@pytest.mark.parametrize("method", FEW_QUICK)
@pytest.mark.parametrize("options", [
    {},
    pytest.param(
        {"reg_tokens": 4, "global_pool": "avg", "init_values": 0.1, "qk_norm": True}, marks=pytest.mark.slow
    ),
])  # fmt: skip
def test_the_searchs_cost_is_the_trace_of_the_assembled_model(method, options):
    model, cls = tiny_vit(**options), registry.get(method)
    costs = table(model)
    stages = resolve_stages(cls, 4, stages=(2, 3))
    knobs = (0.9, 0.5) if cls.knob == "rate" else (3, 9)
    for knob in knobs[1:] if options else knobs:
        plan = Plan(method, stages, uniform_counts(cls, 36, 2, knob))
        counted = count(ReducedViT(model, plan))
        assert costs.plan(plan) == counted.total
        assert costs.reducers(plan) == counted.reducers
        for n, keep in ((36, plan.tokens[0]), plan.tokens):
            assert costs.reducer_estimate(plan, n, keep) == pytest.approx(
                costs.stage(plan, 2, n, keep), rel=1e-9
            )


@pytest.mark.parametrize("decision", ["keep", "merge", "mix"])
def test_asking_for_positions_costs_no_flops(decision):
    class Central(Reducer):
        """Keep what is in the middle, or merge or mix the others into it."""

        def forward(self, view):
            far = (view.position - view.position.mean(1, keepdim=True)).abs().sum(-1)
            order = far.argsort(dim=1, stable=True)
            if decision == "keep":
                return Keep(order[:, : self.keep], self.n)
            label = order.argsort(dim=1).clamp(max=self.keep - 1)
            if decision == "merge":
                return Merge(label, self.keep)
            return Mix(F.one_hot(label, self.keep).mT.float())

    model = tiny_vit()
    plan = Plan(Central, (2, 3), (24, 10))
    assert CostTable(model).plan(plan) == count(ReducedViT(model, plan)).total


def test_counting_leaves_the_training_mode_alone():
    reduced = ReducedViT(tiny_vit()).train()
    count(reduced)
    assert reduced.training
    reduced.eval()


class Probe(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_handles_in_closed_form():
    x = torch.zeros(2, 5, 8)
    assert analyse(Probe(lambda x: torch.cdist(x, x)), x).total() == 2 * 5 * 5 * 8
    assert analyse(Probe(lambda x: F.cosine_similarity(x, x, dim=-1)), x).total() == 3 * 2 * 5 * 8
    assert analyse(Probe(lambda x: F.scaled_dot_product_attention(x, x, x)), x).total() == 2 * 2 * 5 * 5 * 8
    assert analyse(Probe(lambda x: x.softmax(-1).argsort(1).float().mean()), x).total() == 0


def test_an_operator_without_a_count_is_an_error():
    with pytest.raises(UncountedOp, match="aten::fft_fft"):
        analyse(Probe(lambda x: torch.fft.fft(x).real), torch.zeros(2, 8))
