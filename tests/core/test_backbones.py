"""Backbones of today, of few layers and channels: the dense model, all training-free methods, and FLOPs."""

import copy
import functools

import pytest
import timm
import torch
from timm.layers import set_fused_attn

from tokred.core import registry
from tokred.core.backbone import check_supported
from tokred.core.costs import CostTable
from tokred.core.flops import count
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep, Merge
from tokred.core.vit import ReducedViT
from tokred.errors import UnsupportedModel
from tokred.evaluation import controls
from tokred.models import catalog
from tokred.testing import reduced, tiny_plan

GAP = {"class_token": False, "global_pool": "avg"}
BACKBONES = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "augreg": ("vit_tiny_patch16_224", {}),
    "mae_gap": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "dinov2": ("vit_small_patch14_dinov2", {"patch_size": 14, "img_size": 84}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 14, "img_size": 84}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "flexivit": ("flexivit_small", {"patch_size": 10, "img_size": 60}),
    "patch32": ("vit_small_patch32_224", {"patch_size": 32, "img_size": 192}),
    "384px": ("vit_tiny_patch16_384", {"patch_size": 32, "img_size": 384}),
    "oblong": ("vit_tiny_patch16_224", {"img_size": (64, 40), **GAP}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva02_norms": ("eva02_base_patch14_224", {}),
    "eva_giant": ("eva_giant_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3_oblong": ("vit_small_patch16_dinov3", {"img_size": (64, 40), "dynamic_img_size": True}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {"img_size": (64, 40)}),
    "perception_encoder": ("vit_pe_core_tiny_patch16_384", {}),
}
ROTARY = ("eva02", "dinov3", "dinov3_oblong", "rope_mixed")
TRAINING_FREE = [name for name in registry.names() if "learned" not in registry.get(name).groups]


@functools.cache
def backbone(kind, depth=3):
    name, options = BACKBONES[kind]
    size = {"embed_dim": 48, "num_heads": 3, "num_classes": 10, "img_size": 48, "patch_size": 8}
    torch.manual_seed(0)
    model = timm.create_model(name, depth=depth, **{**size, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerScale too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pictures(model):
    return torch.randn(2, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_empty_plan_is_the_dense_model_also_where_attention_is_looked_at(kind):
    model = backbone(kind)
    x = pictures(model)
    with torch.no_grad():
        assert torch.equal(ReducedViT(model)(x), model(x))
        assert torch.equal(ReducedViT(model, record=[1, 2, 3])(x), model(x))


@pytest.mark.parametrize("kind", BACKBONES)
def test_all_training_free_methods_run(kind):
    model = backbone(kind)
    x = pictures(model)
    for method in TRAINING_FREE:
        try:
            wrapped = reduced(registry.get(method), model)
        except UnsupportedModel as error:
            assert "needs a CLS token" in str(error)  # noqa: PT017
            assert model.cls_token is None
            continue
        with torch.no_grad():
            state = wrapped.run(x)
            assert wrapped.adaptive or state.x.shape[1] < wrapped.embed(x).x.shape[1]
            assert wrapped.logits(state).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKBONES)
def test_flops_are_those_of_the_trace(kind):
    model = backbone(kind)
    costs, wrapped = CostTable(model), reduced(registry.get("lotm"), model)
    assert costs.plan(wrapped.plan) == count(wrapped).total
    assert costs.dense == catalog.flops(model)


class FirstAndMean(Reducer):
    """Keep the first tokens, and merge the others."""

    def forward(self, view):
        rank = torch.arange(self.n).expand(len(view.x), -1)
        return Merge(rank.clamp(max=self.keep - 1), self.keep)


@pytest.mark.parametrize("kind", ROTARY)
def test_a_kept_token_keeps_its_rotation_and_a_pair_has_the_one_between(kind):
    """The mean of two unit vectors points at the mean of their angles, which is the oracle here."""
    model = backbone(kind)
    rotation = ReducedViT(model).embed(pictures(model)).rotation
    columns, patches = rotation.columns, model.patch_embed.num_patches
    for first, second in ((0, 1), (columns + 1, 2 * columns + 1), (columns, 2 * columns + 1)):
        label = torch.arange(patches)
        label[second] = first
        label[label > second] -= 1
        merged = rotation.reduced(Merge(label.unsqueeze(0), patches - 1)).of(2)
        table = rotation.of(2)
        table = table if table.ndim == 3 else table.unsqueeze(0)
        want = torch.cat([table[:, :second], table[:, second + 1 :]], dim=1)
        others = torch.arange(patches - 1) != first
        assert torch.equal(merged[0, :, others], want[:, others])
        sine, cosine = (table[:, first] + table[:, second]).chunk(2, dim=-1)
        length = (sine.square() + cosine.square()).sqrt()
        assert torch.allclose(merged[0, :, first], torch.cat([sine / length, cosine / length], -1), atol=1e-5)
    index = torch.arange(patches).flip(0)[None, :4]
    kept = rotation.reduced(Keep(index, patches, label=torch.zeros(1, patches, dtype=torch.long))).of(2)
    assert torch.equal(kept[0], table[:, index[0]])


def test_two_stages_of_merging_rotate_by_the_mean_of_all_patches():
    """Groups of 2 x 2 patches of DINOv3 lie where the patches of a grid of half the size do."""
    model = backbone("dinov3")
    rotation = ReducedViT(model).embed(pictures(model)).rotation
    pairs = torch.arange(36) // 2
    row, column = torch.arange(18) // 3, torch.arange(18) % 3
    squares = row // 2 * 3 + column
    for label, m in ((pairs, 18), (squares, 9)):
        rotation = rotation.reduced(Merge(label.unsqueeze(0), m))
    assert torch.allclose(rotation.of(1)[0, 0], model.rope.get_embed((3, 3)), atol=1e-5)


def test_rotary_models_take_images_of_other_sizes():
    """The same as a model that was built for that size, whose plan has the counts in proportion."""
    model = backbone("dinov3_oblong")  # 8 x 5 patches
    other = copy.deepcopy(model)
    other.set_input_size((80, 64))
    x = pictures(other)
    with torch.no_grad():
        assert torch.equal(ReducedViT(model)(x), model(x))
        got = ReducedViT(model, Plan("tome", (2, 3), (30, 20)))(x)
        assert torch.allclose(got, ReducedViT(other, Plan("tome", (2, 3), (60, 40)))(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["eva02", "dinov3", "rope_mixed"])
def test_recorded_attention_of_rotary_models_is_what_entered_the_scores(kind):
    """Scores of the recorded queries and keys give the output of the model's own attention."""
    model = backbone(kind)
    wrapped = ReducedViT(model, Plan(FirstAndMean, (2,), (20,)), record=[3])
    x = pictures(model)
    with torch.no_grad():
        before = wrapped.advance(wrapped.embed(x), stop=(3, "pre"))
        a = wrapped.advance(before, stop=(3, "mid")).attention
        block, rotation = model.blocks[2], before.rotation.of(3)
        want = block.attn(block.norm1(before.x), rope=rotation)
        scores = (a.q @ a.k.mT * a.scale).softmax(-1) @ a.v
        got = block.attn.proj(block.attn.norm(scores.transpose(1, 2).flatten(2)))
        assert torch.allclose(got, want, atol=1e-5)
        assert rotation.shape[2] == 20
        turned = (a.unrotated - a.k).abs().amax((0, 1, 3))
        assert turned[: model.num_prefix_tokens].amax() == 0
        assert torch.allclose(a.unrotated.norm(dim=-1), a.k.norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("kind", ["eva02", "dinov3", "siglip"])
def test_unfused_attention_gives_the_same(kind):
    model = backbone(kind)
    x = pictures(model)
    with torch.no_grad():
        want = reduced(registry.get("tome"), model)(x)
        set_fused_attn(False)
        try:
            backbone.cache_clear()
            got = reduced(registry.get("tome"), backbone(kind))(x)
        finally:
            set_fused_attn(True)
            backbone.cache_clear()
    assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eva02", "rope_mixed", "siglip"])
def test_one_graph_for_torch_compile_and_export(kind):
    model = backbone(kind, depth=2)
    x = pictures(model)
    wrapped = ReducedViT(model, tiny_plan(registry.get("tome"), model, (2,)))
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(wrapped, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x), wrapped(x), atol=1e-6)
        batch = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(wrapped, (x,), dynamic_shapes=batch, strict=False).module()
        twice = torch.cat([x, x])
        assert torch.allclose(exported(twice), wrapped(twice), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("swin_tiny_patch4_window7_224", {}, "let every layer see all of them"),
        ("eva02_tiny_patch14_224", {"use_post_norm": True}, "built from EvaBlockPostNorm"),
        (
            "vit_small_patch16_dinov3",
            {"num_kv_heads": 1, "attn_type": "rope", "qkv_fused": False},
            "shares keys between the heads",
        ),
    ],
)
def test_what_is_refused_says_why(name, options, why):
    size = {"depth": 1, "embed_dim": 48, "num_heads": 3} if "dino" in name or "eva" in name else {}
    with pytest.raises(UnsupportedModel, match=why):
        check_supported(timm.create_model(name, **size, **options))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov3", "rope_mixed", "siglip"])
def test_the_control_of_low_resolution_leaves_the_backbone_alone(kind):
    model = backbone(kind)
    x = pictures(model)
    with torch.no_grad():
        before = model(x)
        control = controls.lowres(CostTable(model), 0.3).model
        assert control(x).shape == before.shape
        assert not torch.equal(control(x), before)
        assert torch.equal(model(x), before)
