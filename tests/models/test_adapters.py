"""Adapters serve what they were fitted for, and nothing else."""

import copy
import json

import pytest
import torch

import tokred
from tokred.core import registry
from tokred.core.options import complete_options, default_options
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unfitted
from tokred.models import adapters, foreign, tensor_files, zoo
from tokred.testing import tiny_vit

WIDE = Plan("sinkhorn", (2, 3), (35, 34), {"epsilon": 0.5})
PLAN = Plan("sinkhorn", (2, 3), (24, 15), {"epsilon": 0.5})


@pytest.fixture
def backbone():
    return copy.deepcopy(tiny_vit())


def written(folder, backbone, plan=WIDE, name="a.safetensors", **changes):
    """An adapter with parameters of its own, for any budget."""
    folder.mkdir(exist_ok=True)
    model = ReducedViT(backbone, plan, seed=5)
    tensors = {f"stages.{key}": value for key, value in model.stages.state_dict().items()}
    if changes.get("training") == "full":
        tensors |= {f"backbone.{key}": 2 * value for key, value in backbone.state_dict().items()}
    card = {
        **adapters.plan_card(plan, True),
        "training": "reducer",
        "budget": "any",
        "model": "tiny",
        "images_seen": 7,
    }
    card["weights_hash"] = tensor_files.hash_weights(backbone)
    adapters.write(folder / name, tensors, {**card, **changes})
    return foreign.find([folder / name])[0]


def test_any_counts_use_the_first_rows(tmp_path, backbone):
    adapter = written(tmp_path, backbone)
    model = adapter.apply(backbone, PLAN, tensor_files.hash_weights(backbone))
    stored = adapter.tensors()
    for layer, keep in zip((2, 3), PLAN.tokens, strict=True):
        assert torch.equal(
            model.stages[f"pre{layer}"].reducer.centers, stored[f"stages.pre{layer}.reducer.centers"][:keep]
        )
    assert model.backbone is backbone


def test_parameters_survive_the_file_to_a_step_of_their_rows(tmp_path, backbone):
    adapter = written(tmp_path, backbone, PLAN, budget=0.3, tokens=list(PLAN.tokens))
    want = ReducedViT(backbone, PLAN, seed=5).stages.pre2.reducer.centers
    applied = adapter.apply(backbone, PLAN, tensor_files.hash_weights(backbone)).stages.pre2.reducer.centers
    assert ((applied - want).abs() <= 0.51 / 127 * want.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (Plan("patchmerger", (2, 3), (24, 15)), "it was fitted for sinkhorn, not for patchmerger"),
        (Plan("sinkhorn", (2, 3), (24, 15)), "it was fitted with epsilon=0.5, not with epsilon=1.0"),
        (Plan("sinkhorn", (1, 3), (24, 15), {"epsilon": 0.5}), "it was fitted at layers 2 3, not at 1 3"),
    ],
)
def test_what_differs_is_said(tmp_path, backbone, plan, sentence):
    with pytest.raises(TokredError, match=f"cannot be used here: {sentence}"):
        written(tmp_path, backbone).apply(backbone, plan, tensor_files.hash_weights(backbone))


def test_other_weights_are_refused(tmp_path, backbone):
    adapter = written(tmp_path, backbone)
    with torch.no_grad():
        backbone.head.bias.add_(1)
    with pytest.raises(TokredError, match=r"it was fitted on other backbone weights \(tiny, hash"):
        adapter.apply(backbone, PLAN, tensor_files.hash_weights(backbone))


def test_an_adapter_for_one_budget_serves_only_its_counts(tmp_path, backbone):
    adapter = written(tmp_path, backbone, budget=0.3, tokens=[35, 34])
    with pytest.raises(
        TokredError, match="for 35 34 tokens, not for 24 15; --any-budget fits for all counts"
    ):
        adapter.apply(backbone, PLAN, tensor_files.hash_weights(backbone))


def test_a_damaged_adapter_is_refused(tmp_path, backbone):
    adapter, digest = written(tmp_path, backbone), tensor_files.hash_weights(backbone)
    tensors = adapter.tensors()
    adapters.write(
        adapter.path, {key: value for key, value in tensors.items() if "pre3" not in key}, adapter.card
    )
    with pytest.raises(TokredError, match=r"it lacks stages.pre3.reducer.centers"):
        adapter.apply(backbone, PLAN, digest)
    adapters.write(adapter.path, {key: value[:3] for key, value in tensors.items()}, adapter.card)
    with pytest.raises(TokredError, match="size mismatch"):
        adapter.apply(backbone, PLAN, digest)
    adapter.path.write_bytes(b"cut off")
    with pytest.raises(TokredError, match="cannot be read"):
        adapter.apply(backbone, PLAN, digest)


def test_an_adapter_from_before_an_option_has_its_default(tmp_path, backbone):
    card = adapters.plan_card(Plan("sinkhorn", (2, 3), (35, 34)), True)
    del card["options"]["output"]
    adapter = written(tmp_path, backbone, Plan("sinkhorn", (2, 3), (35, 34)), options=card["options"])
    assert adapter.difference(Plan("sinkhorn", (2, 3), (24, 15)), tensor_files.hash_weights(backbone)) == ""


def test_a_file_has_a_byte_for_each_number_of_a_matrix(tmp_path):
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 400, generator=rng) * torch.tensor([[1e3], [1.0], [1e-2], [1e-6], [0.0]])
    tensors = {"stages.a": matrix, "stages.b": torch.ones(7), "backbone.c": torch.randn(3, 3, generator=rng)}
    back = adapters.unpack(adapters.pack(tensors))
    error = (back["stages.a"] - matrix).abs().amax(1)
    step = matrix.abs().amax(1) / 127
    assert (error <= step.clamp(min=2.0**-24) * 0.51).all()
    assert torch.equal(back["backbone.c"], tensors["backbone.c"].half().float())
    assert torch.equal(back["stages.b"], tensors["stages.b"])
    again = adapters.pack(back)
    assert all(torch.equal(value, again[name]) for name, value in adapters.pack(tensors).items())
    adapters.write(tmp_path / "a.safetensors", tensors, {})
    assert (tmp_path / "a.safetensors").stat().st_size < 2000 + 400
    stored = adapters.Adapter(tmp_path / "a.safetensors", {}).tensors()
    assert all(torch.equal(value, stored[name]) for name, value in back.items())


def test_an_adapter_brings_its_options_unless_others_are_set(tmp_path, backbone):
    adapter, digest = written(tmp_path, backbone), tensor_files.hash_weights(backbone)
    fitted = {**default_options(registry.get("sinkhorn")), "epsilon": 0.5}
    for options in ({}, {"epsilon": "0.5"}, {"iterations": 3}):
        assert (
            complete_options(
                registry.get("sinkhorn"), adapters.fitted_options([adapter], "sinkhorn", options, digest)
            )
            == fitted
        )
    for options in ({"epsilon": 1.0}, {"output": "mean"}):
        assert adapters.fitted_options([adapter], "sinkhorn", options, digest) == options
    assert adapters.fitted_options([adapter], "sinkhorn", {}, "of other weights") == {}
    assert adapters.fitted_options([adapter], "lotm", {}, digest) == {}
    default = written(tmp_path, backbone, Plan("sinkhorn", (2, 3), (35, 34)), name="default.safetensors")
    assert (
        adapters.fitted_options([adapter, default], "sinkhorn", {}, digest) == {}
    )  # which it serves as it is


def test_a_full_adapter_brings_its_own_backbone(tmp_path, backbone):
    adapter = written(tmp_path, backbone, training="full")
    digest = tensor_files.hash_weights(backbone)
    model = adapter.apply(backbone, PLAN, digest)
    assert torch.equal(model.backbone.head.weight, (2 * backbone.head.weight).half().float())
    assert tensor_files.hash_weights(backbone) == digest


def test_folders_are_looked_through_and_other_files_passed_over(tmp_path, backbone):
    written(tmp_path, backbone, name="b.safetensors")
    written(tmp_path, backbone, name="a.safetensors")
    tensor_files.write_tensors(backbone.state_dict(), tmp_path / "tiny.safetensors", {"model": "tiny"})
    assert [adapter.path.name for adapter in foreign.find([tmp_path])] == ["a.safetensors", "b.safetensors"]
    (tmp_path / "empty").mkdir()
    for place in ("none", "empty"):
        with pytest.raises(TokredError, match="No adapter at"):
            foreign.find([tmp_path / place])
    with pytest.raises(TokredError, match=r"is not an adapter: it needs a card, tiny.json, beside it"):
        foreign.find([tmp_path / "tiny.safetensors"])


@pytest.mark.slow
def test_reduce_takes_an_adapter_and_refuses_random_parameters(tmp_path, backbone):
    settings = {"stages": (2, 3), "epsilon": 0.5}
    with pytest.raises(Unfitted, match="not fitted: run `tokred fit sinkhorn"):
        tokred.reduce(backbone, "sinkhorn", 0.2, **settings)
    adapter = written(tmp_path, backbone)
    fitted = tokred.reduce(backbone, "sinkhorn", 0.2, adapter=adapter.path, **settings)
    assert torch.equal(
        fitted.stages.pre2.reducer.centers[0],
        adapter.tensors()["stages.pre2.reducer.centers"][0],
    )
    from_folder = tokred.reduce(backbone, "sinkhorn", 0.2, adapter=tmp_path, **settings)
    assert torch.equal(from_folder.stages.pre2.reducer.centers, fitted.stages.pre2.reducer.centers)
    unfitted = tokred.reduce(backbone, "sinkhorn", 0.2, allow_unfitted=True, **settings)
    assert not torch.equal(unfitted.stages.pre2.reducer.centers, fitted.stages.pre2.reducer.centers)
    for given in (adapter.path, tmp_path):
        assert tokred.reduce(backbone, "sinkhorn", 0.2, stages=(2, 3), adapter=given).plan == fitted.plan
        with pytest.raises(TokredError, match="cannot be used here: it was fitted with epsilon=0.5"):
            tokred.reduce(backbone, "sinkhorn", 0.2, stages=(2, 3), adapter=given, epsilon=1.0)
    with pytest.raises(TokredError, match="There is no adapter of lotm at"):
        tokred.reduce(backbone, "lotm", 0.2, stages=(2, 3), adapter=tmp_path)


def test_shipped_adapters_belong_to_the_shipped_weights():
    """Each serves every budget of its model, and its card says how to fit it again."""
    found = adapters.shipped()
    assert {(a.card["model"], a.card["method"]) for a in found} >= {
        (model, method)
        for model in ("deit_t", "deit_s")
        for method in ("patchmerger", "sinkhorn", "sit", "dynamicvit")
    }
    hashes = {model: zoo.load_shipped(model).weights_hash for model in ("deit_t", "deit_s")}
    for adapter in found:
        card = adapter.card
        assert card["weights_hash"] == hashes[card["model"]]
        assert (card["training"], card["budget"]) == ("reducer", "any")
        assert card["command"].startswith(f"tokred fit {card['method']} --model {card['model']}")
        assert card["images_seen"] > 0
        assert json.dumps(card["history"])


def test_names_tell_the_options_that_are_not_default():
    assert adapters.file_name("deit_t", WIDE) == "deit_t-sinkhorn-epsilon=0.5.safetensors"
    assert adapters.file_name("org/vit", Plan("sit", (2,), (3,))) == "org-vit-sit.safetensors"
