"""ReducedViT: the dense model stays the dense model, states can be continued, unknown models are refused by name."""

import copy

import pytest
import timm
import torch
from torch.nn import functional as F

from tokred.core import registry
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep
from tokred.core.vit import ReducedViT, State, check_supported
from tokred.errors import TokredError, UnsupportedModel
from tokred.methods.tome import ToMe
from tokred.testing import tiny_vit

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "average": {"global_pool": "avg"},
    "no_cls": {"class_token": False, "global_pool": "avg"},
    "layerscale_qknorm_prenorm": {"init_values": 0.1, "qk_norm": True, "pre_norm": True},
    "dynamic": {"dynamic_img_size": True},
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
    assert list(reduced.state_dict()) == [f"backbone.{key}" for key in keys]
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
        assert torch.equal(reduced.head(reduced.advance(state)), reduced(images))
        assert torch.equal(dense.head(dense.advance(state)), model(images))


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
    size = torch.tensor([[1.0, 3.0, 1.0, 2.0]])
    block = model.blocks[0]
    with torch.no_grad():
        got = reduced._attend(State(x, sizes=size)).x
        repeated = x[:, [0, 1, 2, 2, 2, 3, 4, 4]]
        want = repeated + block.attn(block.norm1(repeated))
    assert torch.allclose(got[0], want[0, [0, 1, 2, 5, 6]], atol=1e-5)


def test_average_pooling_weighs_by_size():
    model = tiny_vit(global_pool="avg")
    reduced = ReducedViT(model)
    x = torch.randn(1, 3, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = reduced.head(State(x, sizes=torch.tensor([[1.0, 3.0]])))
        want = model.forward_head(model.norm(x[:, [0, 1, 2, 2, 2]]))
    assert torch.allclose(got, want, atol=1e-6)


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


def test_other_image_size_is_one_sentence(images):
    model = tiny_vit(dynamic_img_size=True)
    reduced = ReducedViT(model, Plan("topk", (2,), (20,)))
    with pytest.raises(TokredError, match="planned for 36 patch tokens, but this image gives 16"):
        reduced(images[:, :, :32, :32])


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
        ("eva02_tiny_patch14_224", "Eva"),
        ("vit_base_patch16_siglip_224", "map"),
        ("resnet18", "ResNet"),
    ],
)
def test_unknown_models_are_refused_by_name(name, word):
    if ":" in name:
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
        small = {"embed_dim": 48, "depth": 2, "num_heads": 3} if name.startswith(("vit", "eva")) else {}
        model = timm.create_model(name, **small)
    with pytest.raises(UnsupportedModel, match=word):
        check_supported(model)


def test_training_mode_reaches_the_taps():
    reduced = ReducedViT(tiny_vit(), Plan("topk", (2,), (20,)))
    assert reduced.train()._taps[2].training
    assert not reduced.eval()._taps[2].training


@pytest.mark.parametrize("method", registry.names())
def test_one_graph_for_torch_compile_and_export(method, images):
    reduced = ReducedViT(tiny_vit(), Plan(method, (2, 3), (30, 24)))
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(reduced, backend="eager", fullgraph=True)(images), reduced(images))
        exported = torch.export.export(
            reduced, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
        ).module()
        twice = torch.cat([images, images])
        assert torch.equal(exported(twice), reduced(twice))
