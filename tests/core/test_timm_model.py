"""A reduced model is a timm model: names, weights, features and settings are those of its backbone."""

import copy
import pickle

import pytest
import torch

from tokred.core import registry
from tokred.core.plan import Plan
from tokred.core.reduction import Keep
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, UnsupportedModel
from tokred.testing import tiny_vit


def build(method="lotm", **options):
    tokens = (36, 36) if registry.get(method).adaptive() else (28, 20)
    return ReducedViT(copy.deepcopy(tiny_vit(**options)), Plan(method, (2, 3), tokens))


def test_settings_are_those_of_the_backbone():
    reduced = build()
    for name in ("num_classes", "num_features", "head_hidden_size", "embed_dim", "num_prefix_tokens"):
        assert getattr(reduced, name) == getattr(reduced.backbone, name)
    assert reduced.pretrained_cfg == reduced.default_cfg == reduced.backbone.default_cfg
    assert reduced.no_weight_decay() == reduced.backbone.no_weight_decay()
    assert reduced.group_matcher() == reduced.backbone.group_matcher()
    assert not hasattr(reduced, "no_such_attribute")


def test_a_checkpoint_of_the_backbone_loads_and_what_is_saved_loads_into_timm():
    model = tiny_vit()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(2)
    reduced = build()
    reduced.load_state_dict(other.state_dict(), strict=True)
    assert all(torch.equal(reduced.state_dict()[key], value) for key, value in other.state_dict().items())
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(reduced.state_dict(), strict=True)
    assert torch.equal(fresh.head.weight, other.head.weight)


def test_reducers_have_one_prefix_and_missing_keys_are_named_as_saved(images):
    reduced = build("patchmerger")
    state = reduced.state_dict()
    own = [key for key in state if key not in reduced.backbone.state_dict()]
    assert own
    assert all(key.startswith("reducers.") for key in own)
    assert list(state) == [name for name, _ in reduced.named_parameters()]
    again = build("patchmerger")
    again.load_state_dict(state)
    assert torch.equal(again(images), reduced(images))
    again.load_state_dict(
        {
            **{f"backbone.{key}": value for key, value in reduced.backbone.state_dict().items()},
            **{f"stages.{key}": value for key, value in reduced.stages.state_dict().items()},
        }
    )
    missing = again.load_state_dict({own[0]: state[own[0]], "other": torch.zeros(1)}, strict=False)
    assert set(missing.missing_keys) == set(state) - {own[0]}
    assert missing.unexpected_keys == ["other"]


def test_names_reach_the_parts_also_inside_another_module():
    reduced = build("patchmerger")
    outer = torch.nn.ModuleDict({"vit": reduced})
    assert set(outer.state_dict()) == {name for name, _ in outer.named_parameters()}
    assert "vit.blocks.0.attn.qkv.weight" in outer.state_dict()
    outer.load_state_dict(outer.state_dict())
    for name, parameter in reduced.named_parameters():
        assert reduced.get_parameter(name) is parameter
    assert reduced.get_submodule("blocks.1.attn") is reduced.backbone.blocks[1].attn


def test_parts_that_are_set_on_the_model_run(images):
    reduced = build()
    reduced.head = torch.nn.Linear(48, 7)
    assert reduced.backbone.head is reduced.head
    assert reduced(images).shape == (3, 7)
    reduced.reset_classifier(5)
    assert reduced.get_classifier() is reduced.head
    assert (reduced.num_classes, reduced(images).shape) == (5, (3, 5))
    reduced.reset_classifier(0)
    assert torch.equal(
        reduced(images), reduced.forward_head(reduced.forward_features(images), pre_logits=True)
    )
    with pytest.raises(UnsupportedModel, match="'prr'"):
        reduced.reset_classifier(5, "prr")


def test_a_functional_call_takes_all_parameters(images):
    reduced = build("patchmerger")
    before = reduced(images)
    parameters = {name: 1.1 * value.detach() for name, value in reduced.named_parameters()}
    changed = torch.func.functional_call(reduced, parameters, (images,))
    assert torch.equal(reduced(images), before)
    reduced.load_state_dict(parameters)
    assert torch.equal(changed, reduced(images))


@pytest.mark.parametrize("pool", ["token", "avg", "map"])
@pytest.mark.parametrize("method", ["lotm", "kmedoids"])
def test_the_head_on_features_gives_the_logits(method, pool, images):
    reduced = build(method, global_pool=pool)
    features = reduced.forward_features(images)
    assert features.shape == (3, 21, 48)
    assert torch.equal(reduced.forward_head(features), reduced(images))
    pooled = reduced.forward_head(features, pre_logits=True)
    assert torch.equal(reduced.backbone.head(pooled), reduced(images))
    if pool != "token":
        with pytest.raises(TokredError, match="sizes, which these features do not carry"):
            reduced.forward_head(features.clone())
        size = reduced.run(images).size
        assert torch.equal(reduced.forward_head(features.clone(), size=size), reduced(images))


@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_intermediates_of_the_empty_plan_are_those_of_timm(output_fmt, images):
    model = tiny_vit()
    reduced = ReducedViT(model)
    for settings in (
        {},
        {"indices": 2, "norm": True, "return_prefix_tokens": True},
        {"indices": [0, -2], "stop_early": True, "intermediates_only": True},
        {"indices": [1], "output_dict": True, "return_prefix_tokens": True},
    ):
        got, want = (
            m.forward_intermediates(images, output_fmt=output_fmt, **settings) for m in (reduced, model)
        )
        assert torch.equal(_flat(got), _flat(want))
    assert torch.equal(
        _flat(reduced.get_intermediate_layers(images, 2, reshape=True, norm=True)),
        _flat(model.get_intermediate_layers(images, 2, reshape=True, norm=True)),
    )


def _flat(value):
    """All numbers of nested tuples, lists and dictionaries of tensors."""
    if isinstance(value, torch.Tensor):
        return value.flatten()
    parts = value.values() if isinstance(value, dict) else value
    return torch.cat([_flat(part) for part in parts])


@pytest.mark.parametrize("indices", [(4,), (-5,), (), "last", 5])
def test_layers_that_the_model_does_not_have_are_one_sentence(indices, images):
    with pytest.raises(TokredError, match="layers from 0 to 3, or the number of last layers; got"):
        ReducedViT(tiny_vit()).forward_intermediates(images, indices)


@pytest.mark.slow
@pytest.mark.parametrize("method", registry.names())
def test_every_layer_has_features_on_the_grid(method, images):
    reduced = build(method)
    with torch.no_grad():
        final, layers = reduced.forward_intermediates(images, norm=True)
        state = reduced.run(images)
        assert torch.equal(final, reduced.forward_features(images))
    assert [layer.shape for layer in layers] == 4 * [(3, 48, 6, 6)]
    patches = layers[-1].flatten(2).mT
    labels = [reduction.labels() for reduction in state.reductions]
    for image in range(3):
        for patch in range(36):
            token = labels[0][image, patch]
            token = -1 if token < 0 else labels[1][image, token]
            if all(isinstance(reduction, Keep) for reduction in state.reductions):
                want = final[image, 1 + token] if token >= 0 else torch.zeros(48)
                assert torch.equal(patches[image, patch], want)
    assert patches.isfinite().all()


@pytest.mark.parametrize("method", registry.names())
def test_a_reduced_model_copies_pickles_casts_and_trains(method, images):
    reduced = build(method)
    want = reduced(images)
    for other in (copy.deepcopy(reduced), pickle.loads(pickle.dumps(reduced))):
        assert other.backbone is not reduced.backbone
        assert torch.equal(other(images), want)
    reduced.train()
    reduced(images).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in reduced.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert reduced.double().pos_embed.dtype == torch.float64
