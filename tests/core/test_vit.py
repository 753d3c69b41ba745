"""ReducedViT: the dense model stays itself, states can be continued, unknown models are refused by name."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import timm.data
import torch
from helpers.methods import FIXED
from torch.nn import functional as F

import tokred
from tokred.core import registry
from tokred.core.backbone import check_supported
from tokred.core.flops import count
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import History, Keep, Merge
from tokred.core.stage import State
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, UnsupportedModel
from tokred.methods.tome import ToMe
from tokred.testing import tiny_plan, tiny_vit

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "average": {"global_pool": "avg"},
    "no_cls": {"class_token": False, "global_pool": "avg"},
    "layerscale_qknorm_prenorm": {"init_values": 0.1, "qk_norm": True, "pre_norm": True},
    "dynamic": {"dynamic_img_size": True},
    "map": {"class_token": False, "global_pool": "map"},
    "maximum": {"global_pool": "max"},
    "average_with_prefix": {"global_pool": "avgmax", "pool_include_prefix": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_empty_plan_is_the_dense_model_bit_for_bit(options, images):
    model = tiny_vit(**options)
    with torch.no_grad():
        assert torch.equal(ReducedViT(model)(images), model(images))


def test_distilled_deit(images):
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=48,
        patch_size=8,
        embed_dim=48,
        depth=4,
        num_heads=3,
        num_classes=10,
    )
    model.eval()
    with torch.no_grad():
        assert torch.equal(ReducedViT(model)(images), model(images))
        for method, tokens in (("lotm", (30, 24)), ("tome", (30, 24)), ("topk", (30, 24))):
            reduced = ReducedViT(model, Plan(method, (2, 3), tokens))
            assert reduced(images).shape == (3, 10)
            assert reduced.run(images).x.shape == (3, 26, 48)


def test_the_backbone_is_not_changed(images):
    model = tiny_vit()
    keys, modules = list(model.state_dict()), [type(m) for m in model.modules()]
    reduced = ReducedViT(model, Plan("topk", (2,), (20,)))
    reduced(images)
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == modules
    assert list(reduced.state_dict()) == keys
    assert next(reduced.parameters()) is next(model.parameters())


@pytest.mark.parametrize(
    ("method", "site"), [("topk", "mid"), ("dpcknn", "pre"), ("tome", "mid"), ("kmedoids", "pre")]
)
def test_a_plan_continues_from_the_dense_state_bit_for_bit(method, site, images):
    model = tiny_vit()
    reduced = ReducedViT(model, Plan(method, (3, 4), (28, 20)))
    dense = ReducedViT(model, record=reduced.recorded_before_first)
    assert reduced.first_point == (3, site)
    with torch.no_grad():
        state = dense.advance(dense.embed(images), stop=(3, site))
        assert torch.equal(reduced.logits(reduced.advance(state)), reduced(images))
        assert torch.equal(dense.logits(dense.advance(state)), model(images))


def test_recorded_attention_is_what_entered_the_scores(images):
    model = tiny_vit(init_values=0.1, qk_norm=True)
    dense = ReducedViT(model, record=[2])
    with torch.no_grad():
        before = dense.advance(dense.embed(images), stop=(2, "pre"))
        attention = dense.advance(before, stop=(2, "mid")).attention
        attn = model.blocks[1].attn
        b, n, _ = before.x.shape
        q, k, v = attn.qkv(model.blocks[1].norm1(before.x)).reshape(b, n, 3, 3, 16).permute(2, 0, 3, 1, 4)
        assert torch.equal(attention.q, attn.q_norm(q))
        assert torch.equal(attention.k, attn.k_norm(k))
        assert torch.equal(attention.v, v)


def test_proportional_attention_equals_repeated_keys():
    """A key of size s acts as s identical keys (methods that merge rely on it)."""
    model = tiny_vit()
    reduced = ReducedViT(model, Plan(ToMe, (2,), (20,)))
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))  # CLS and four patches
    block = model.blocks[0]
    with torch.no_grad():
        got = reduced.attend(State(x, history=History(Merge(torch.tensor([[0, 1, 1, 1, 2, 3, 3]]), 4)))).x
        repeated = x[:, [0, 1, 2, 2, 2, 3, 4, 4]]
        want = repeated + block.attn(block.norm1(repeated))
    assert torch.allclose(got[0], want[0, [0, 1, 2, 5, 6]], atol=1e-5)


POOLS = {
    "avg": {"global_pool": "avg"},
    "avg_with_prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "map": {"global_pool": "map", "class_token": False},
    "map_with_prefix": {"global_pool": "map", "pool_include_prefix": True},
}


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_a_token_of_size_s_is_pooled_as_s_equal_tokens_and_padding_not_at_all(options):
    model = tiny_vit(**options)
    reduced, prefix = ReducedViT(model), model.num_prefix_tokens
    x = torch.randn(1, prefix + 3, 48, generator=torch.Generator().manual_seed(0))
    merge = Merge(torch.tensor([[0, 1, 1, 1]]), 3, drops=True)  # sizes 1, 3 and 0
    with torch.no_grad():
        got = reduced.logits(State(x, history=History(merge)))
        rows = [*range(prefix), prefix, *[prefix + 1] * 3]
        want = model.forward_head(model.norm(x[:, rows]))
    assert torch.allclose(got, want, atol=1e-5)


def test_cls_attention_equals_the_explicit_map(images):
    model = tiny_vit()
    seen = {}

    class Spy(Reducer):
        """Record CLS attention."""

        def forward(self, view):
            seen["cls"] = view.cls_attention
            return Keep(torch.arange(self.keep).expand(len(view.x), -1), self.n)

    with torch.no_grad():
        ReducedViT(model, Plan(Spy, (2,), (20,)))(images)
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        x = model.blocks[0](x)
        attn = model.blocks[1].attn
        q, k, _ = attn.qkv(model.blocks[1].norm1(x)).reshape(3, 37, 3, 3, 16).permute(2, 0, 3, 1, 4)
        full = F.softmax(q @ k.mT / 4, dim=-1)
    assert torch.allclose(seen["cls"], full[:, :, 0, 1:].mean(1), atol=1e-6)


def test_bfloat16_autocast_and_a_bfloat16_model(images):
    for method in ("lotm", "tome", "kmedoids", "dpcknn", "topk", "evit"):
        reduced = ReducedViT(tiny_vit(), Plan(method, (2, 3), (28, 20)))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert reduced(images).isfinite().all()
        with torch.no_grad():
            assert copy.deepcopy(reduced).bfloat16()(images.bfloat16()).isfinite().all()


@pytest.mark.parametrize("method", registry.names())
def test_images_of_another_size_keep_the_rate(method):
    """The same as a model that was built for that size, whose plan has the counts in proportion."""
    dynamic = tiny_vit(dynamic_img_size=True)
    cls, sides = registry.get(method), (64, 96)
    own = tiny_plan(cls, dynamic)
    reduced = ReducedViT(dynamic, own)
    images = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if cls.nested:
            with pytest.raises(TokredError, match="planned for 36 patch tokens, but this image has 96"):
                reduced(images)
            return
        got = reduced.run(images)
        other = copy.deepcopy(dynamic)
        other.set_input_size(sides)
        tokens, n = [], 96
        for keep in own.tokens:
            n = max((keep - cls.extra) * 96 // 36 + cls.extra, cls.floor(n))
            tokens.append(n)
        want = ReducedViT(other, Plan(cls, own.stages, tuple(tokens), knob=own.knob))
        assert torch.allclose(got.x, want.run(images).x, atol=1e-5)
    assert got.x.shape[1] < 97


def test_a_plan_of_another_size_is_one_sentence(images):
    model = tiny_vit(dynamic_img_size=True)
    reduced = ReducedViT(model, Plan("patchmerger", (2,), (20,)))
    with pytest.raises(TokredError, match="planned for 36 patch tokens, but this image has 16"):
        reduced(images[:, :, :32, :32])


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda x: x.double(), r"float64 \[3, 3, 48, 48\] on cpu"),
        (lambda x: x.int(), r"int32 \[3, 3, 48, 48\] on cpu"),
        (lambda x: x[0], r"float32 \[3, 48, 48\] on cpu"),
        (lambda x: x[:, :1], r"float32 \[3, 1, 48, 48\] on cpu"),
        (lambda x: x[..., :40], r"float32 \[3, 3, 48, 40\] on cpu"),
        (lambda x: x.to_sparse(), r"sparse_coo float32 \[3, 3, 48, 48\] on cpu"),
        (lambda x: x.to("meta"), r"float32 \[3, 3, 48, 48\] on meta"),
        (lambda x: x.numpy(), r"numpy\.ndarray"),
        (lambda x: None, "NoneType"),
    ],
)
def test_images_that_the_model_cannot_take_are_one_sentence(change, given, images):
    reduced = ReducedViT(tiny_vit(), Plan("topk", (2,), (20,)))
    with pytest.raises(TokredError, match=rf"takes images of float32 \[B, 3, 48, 48\] on cpu; got {given}\."):
        reduced(change(images))


def test_images_in_no_whole_patches_are_one_sentence(images):
    reduced = ReducedViT(tiny_vit(dynamic_img_size=True), Plan("topk", (2,), (20,)))
    with pytest.raises(TokredError, match=r"whole patches of \(8, 8\) on cpu; got float32 \[3, 3, 48, 47\]"):
        reduced(images[..., :47])


def test_an_error_with_another_reason_than_the_images_stays_itself(images):
    model = copy.deepcopy(tiny_vit())
    reduced = ReducedViT(model, Plan("topk", (2,), (20,)))
    model.patch_embed.norm = torch.nn.LayerNorm(7)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        reduced(images)


@pytest.mark.slow
@pytest.mark.parametrize("method", registry.names())
def test_a_model_on_the_meta_device_gives_shapes(method, images):
    reduced = ReducedViT(copy.deepcopy(tiny_vit()), tiny_plan(registry.get(method), tiny_vit())).to("meta")
    assert reduced(images.to("meta")).shape == (3, 10)


def test_scripting_is_refused_in_one_sentence():
    with pytest.raises(TokredError, match="use torch.export"):
        torch.jit.script(torch.nn.Sequential(ReducedViT(tiny_vit(), Plan("topk", (2,), (20,)))))


@pytest.mark.parametrize("tokens", [(20,), (30, 25, 20), (30, 2), (30, "20"), (37, 20), (30, 20.5)])
def test_counts_that_the_stages_cannot_keep_are_one_sentence(tokens):
    reduced = ReducedViT(tiny_vit(), Plan("tome", (2, 3), (28, 20)))
    with pytest.raises(TokredError, match=r"has 2 stages|between \d+ and \d+, not to"):
        reduced.retarget(tokens)


def test_blocks_that_are_none_any_more_are_one_sentence(images):
    model = copy.deepcopy(tiny_vit())
    reduced = ReducedViT(model, Plan("topk", (2,), (20,)))
    blocks = model.blocks
    model.blocks = blocks[:3]
    with pytest.raises(UnsupportedModel, match="had 4 layers when it was reduced and has 3 now"):
        reduced(images)
    model.blocks = torch.nn.ModuleList([*blocks[:2], torch.nn.Identity(), blocks[3]])
    with pytest.raises(UnsupportedModel, match="Layer 3 of the model is now Identity"):
        reduced(images)


def test_mask_from_outside_is_refused(images):
    with pytest.raises(TokredError, match="attn_mask"):
        ReducedViT(tiny_vit())(images, attn_mask=torch.zeros(1))


def test_a_method_that_needs_a_cls_token_is_refused_without_one():
    with pytest.raises(UnsupportedModel, match="topk needs a CLS token"):
        ReducedViT(tiny_vit(class_token=False, global_pool="avg"), Plan("topk", (2,), (20,)))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("vit_tiny_patch16_224:block", "ParallelThingsBlock"),
        ("beit_base_patch16_224", "Beit"),
        ("vit_tiny_patch16_224:prr", "pools by 'prr'"),
        ("resnet18", "ResNet"),
    ],
)
def test_unknown_models_are_refused_by_name(name, word):
    if name.endswith(":prr"):
        model = timm.create_model(name[:-4], depth=1, embed_dim=48, num_heads=3, global_pool="prr")
    elif ":" in name:
        from timm.models.vision_transformer import ParallelThingsBlock

        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=48,
            embed_dim=48,
            depth=2,
            num_heads=3,
            block_fn=ParallelThingsBlock,
        )
    else:
        small = {"embed_dim": 48, "depth": 2, "num_heads": 3} if name.startswith(("vit", "beit")) else {}
        model = timm.create_model(name, **small)
    with pytest.raises(UnsupportedModel, match=word):
        check_supported(model)


def test_the_backbone_is_read_when_it_is_called(images):
    """Parts that are replaced or wrapped after `reduce`, as by LoRA, run and learn in all layers."""

    class LowRank(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.up = linear, torch.nn.Linear(48, 2, bias=False)
            self.down = torch.nn.Linear(2, linear.out_features, bias=False)

        def forward(self, x):
            return self.linear(x) + self.down(self.up(x))

    model = copy.deepcopy(tiny_vit())
    for method in ("tome", "lotm", "kmedoids"):
        changed = copy.deepcopy(model)
        before = ReducedViT(changed, Plan(method, (2, 3), (28, 20)))
        unchanged = before(images)
        for block in changed.blocks:
            block.attn.qkv, block.mlp = LowRank(block.attn.qkv), torch.nn.Sequential(block.mlp)
        after = ReducedViT(copy.deepcopy(model), Plan(method, (2, 3), (28, 20)))
        after.backbone = changed
        got = before(images)
        assert torch.equal(got, after(images))
        assert not torch.allclose(got, unchanged, atol=1e-4)
        got.square().sum().backward()
        assert all(block.attn.qkv.down.weight.grad.any() for block in changed.blocks)


def test_attention_that_cannot_be_looked_at_is_one_sentence(images):
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, attn_mask=None):
            return self.inner(x, attn_mask=attn_mask)

    model = copy.deepcopy(tiny_vit())
    reduced = ReducedViT(model, Plan("topk", (2,), (20,)))
    want = reduced(images)
    for layer in (0, 2):  # nobody looks at these
        model.blocks[layer].attn = Wrapped(model.blocks[layer].attn)
    assert torch.equal(reduced(images), want)
    model.blocks[1].attn = torch.compile(model.blocks[1].attn, backend="eager")
    assert torch.allclose(reduced(images), want, atol=1e-6)
    model.blocks[1].attn = Wrapped(model.blocks[1].attn)
    with pytest.raises(UnsupportedModel, match="attention is now Wrapped"):
        reduced(images)


def test_hooks_on_attention_run_where_it_is_looked_at(images):
    model, calls = copy.deepcopy(tiny_vit()), []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    ReducedViT(model, Plan("topk", (2,), (20,)))(images)
    assert [shape[1] for shape in calls] == [37, 37, 21, 21]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tome", "kmedoids", "dynamicvit", "sinkhorn"])
def test_threads_share_a_model(method, images):
    reduced = ReducedViT(tiny_vit(), Plan(method, (2, 3), (28, 20)))
    inputs = [images, images.flip(0) + 1]
    with torch.no_grad():
        want = [reduced(x) for x in inputs]

    def run(which):
        with torch.no_grad():
            return all(torch.equal(reduced(inputs[which]), want[which]) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, [0, 1, 0, 1])) == [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages"),
    # How a second stage reads the first one's decision is the framework's work: one method of each decision.
    [*((method, 1) for method in FIXED), ("evit", 2), ("patchmerger", 2), ("tome", 2)],
)
def test_one_graph_for_torch_compile_and_export(method, stages, images):
    first = 1 if registry.get(method).site == "mid" else 2
    layers = tuple(range(first, first + stages))
    reduced = ReducedViT(tiny_vit(depth=layers[-1]), Plan(method, layers, (30, 24)[:stages]))
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(reduced, backend="eager", fullgraph=True)(images), reduced(images))
        exported = torch.export.export(
            reduced, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        ).module()
        twice = torch.cat([images, images])
        assert torch.equal(exported(twice), reduced(twice))


def test_a_model_in_training_mode_reduces_until_training_is_asked_for(images):
    model = copy.deepcopy(tiny_vit()).train()
    reduced = ReducedViT(model, Plan("dynamicvit", (2, 3), (28, 20)))
    assert model.training
    assert reduced.run(images).x.shape[1] == 21
    reduced.train()
    assert reduced.run(images).x.shape[1] == 37
    reduced.eval()
    assert reduced.run(images).x.shape[1] == 21


def test_timm_prepares_images_for_the_wrapper_as_for_the_model():
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", depth=4, embed_dim=48, num_heads=3)
    reduced = ReducedViT(model, Plan("topk", (2,), (100,)))
    want = timm.data.resolve_model_data_config(model)
    assert timm.data.resolve_model_data_config(reduced) == want
    assert want["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("method", ["tome", "dynamicvit", "patchmerger"])
def test_gradient_checkpointing_saves_activations_and_changes_nothing(method, images):
    model = copy.deepcopy(tiny_vit())
    reduced = ReducedViT(model, Plan(method, (2, 3), (28, 20)))

    def gradients():
        saved = []
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss = reduced(images).square().sum()
        loss.backward()
        return sum(saved), {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }

    plain, want = gradients()
    reduced.set_grad_checkpointing()
    less, got = gradients()
    assert less < plain / 2
    assert got.keys() == want.keys()
    assert all(torch.allclose(got[name], want[name], atol=1e-5) for name in want)


def test_images_of_one_channel():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, patch_size=8, embed_dim=48, depth=4, num_heads=3, in_chans=1
    ).eval()
    reduced = tokred.reduce(model, "lotm", 0.2, stages=(2, 3))
    assert reduced(torch.randn(2, 1, 48, 48)).shape == (2, 1000)
    assert count(reduced).total <= 0.8 * count(ReducedViT(model)).total


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", registry.names())
def test_a_reduced_model_may_be_cast(method, dtype, images):
    reduced = ReducedViT(copy.deepcopy(tiny_vit()), tiny_plan(registry.get(method), tiny_vit()))
    with torch.no_grad():
        want = reduced(images)
        got = reduced.to(dtype)(images.to(dtype))
    assert got.dtype == dtype
    if method in ("random", "sit", "sinkhorn"):  # the others decide by what half precision rounds
        assert torch.allclose(got.float(), want, atol=0.1)
    assert all(p.dtype == torch.float32 for p in reduced.stages.parameters())


def test_patches_that_are_dropped_in_training_are_named(images):
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=48,
        patch_size=8,
        embed_dim=48,
        depth=4,
        num_heads=3,
        patch_drop_rate=0.5,
    )
    reduced = ReducedViT(model, Plan("topk", (2,), (20,)))
    with pytest.raises(TokredError, match="patch_drop_rate=0"):
        reduced(images)
    assert reduced.eval()(images).isfinite().all()


def test_a_hybrid_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="makes its tokens by HybridEmbed"):
        check_supported(timm.create_model("vit_tiny_r_s16_p8_224", depth=2))


class Decides(Reducer):
    """Return whatever the test says."""

    decision = None

    def forward(self, view):
        return type(self).decision(len(view.x), self.n, self.keep)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (
            lambda b, n, m: torch.zeros(b, m, 48),
            "Decides.forward must return Keep, Merge or Mix, not Tensor",
        ),
        (
            lambda b, n, m: Keep(torch.arange(m + 1).expand(b, -1), n),
            "leave 20 tokens at layer 2, but leaves 21",
        ),
    ],
)
def test_what_is_no_decision_is_one_sentence(decision, message, images):
    Decides.decision = staticmethod(decision)
    with pytest.raises(TokredError, match=message):
        ReducedViT(tiny_vit(), Plan(Decides, (2, 3), (20, 15)))(images)


@pytest.mark.parametrize(
    "settings", [{"stages": (True,)}, {"tokens": (True,)}, {"stages": (2,), "seed": True}]
)
def test_a_truth_value_is_no_number(settings):
    with pytest.raises(TokredError, match="got .*True"):
        tokred.reduce(tiny_vit(), "lotm", **settings)


@pytest.mark.parametrize("budget", ["0.3", True, [0.3]])
def test_a_budget_that_is_no_number_is_one_sentence(budget):
    with pytest.raises(TokredError, match="A budget is the fraction of FLOPs"):
        tokred.reduce(tiny_vit(), "lotm", budget, stages=(2, 3))


def test_a_model_without_weights_is_one_sentence():
    with pytest.raises(TokredError, match="meta device"):
        tokred.reduce(copy.deepcopy(tiny_vit()).to("meta"), "lotm", 0.2, stages=(2, 3))


@pytest.mark.parametrize(
    "values",
    [
        {"stages": 2},
        {"stages": "2"},
        {"tokens": (2.5,)},
        {"tokens": (True,)},
        {"tokens": None},
        {"options": 3},
        {"options": [1]},
    ],
)
def test_a_plan_of_wrong_types_is_one_sentence(values):
    with pytest.raises(TokredError, match=r"whole numbers|given by their names"):
        Plan(**{"method": "topk", "stages": (2,), "tokens": (20,), **values})


@pytest.mark.parametrize("record", [None, 3, "3", (0,), (99,), (True,), (1.5,), ("a",)])
def test_layers_to_record_that_are_none_are_one_sentence(record):
    with pytest.raises(TokredError, match="record takes layers from 1 to"):
        ReducedViT(tiny_vit(), record=record)


def test_what_is_no_plan_is_one_sentence():
    with pytest.raises(TokredError, match=r"A plan is a tokred\.Plan; got 'topk'"):
        ReducedViT(tiny_vit(), "topk")
