"""Names, weight files, and what is wrong with them."""

import json
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from tokred import configs
from tokred.errors import TokredError, UnknownName, UnsupportedModel
from tokred.models import tensor_files, zoo
from tokred.testing import tiny_vit
from tokred.training.backbone.net2net import widen
from tokred.training.backbone.recipe import Recipe
from tokred.training.backbone.train import accuracy


def test_names():
    assert zoo.timm_name("deit_s") == "deit_small_patch16_224"
    assert zoo.timm_name("vit_tiny_patch16_224") == "vit_tiny_patch16_224"
    with pytest.raises(UnknownName, match="Did you mean: .*deit_s"):
        zoo.timm_name("deit_ss")
    with pytest.raises(UnknownName, match="the ViTs of timm"):
        zoo.timm_name("@@@")
    with pytest.raises(UnsupportedModel, match="ResNet"):
        zoo.build("resnet18")


def test_weights_round_trip_in_half_precision(tmp_path):
    model = zoo.build("deit_t", 10)
    path = tmp_path / "w.safetensors"
    tensor_files.write_tensors(model.state_dict(), path, {"seed": 3})
    loaded = zoo.load_file("deit_t", path)
    assert loaded.card == {"seed": 3}
    assert loaded.model.num_classes == 10
    for a, b in zip(model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    again = zoo.load_file("deit_t", path)
    assert loaded.weights_hash == again.weights_hash != tensor_files.hash_weights(model)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_cut_off_file(tmp_path):
    path = tmp_path / "w.safetensors"
    tensor_files.write_tensors(zoo.build("deit_t", 10).state_dict(), path, {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TokredError, match="cannot be read"):
        zoo.load_file("deit_t", path)
    with pytest.raises(TokredError, match="No weight file"):
        zoo.load_file("deit_t", tmp_path / "none.safetensors")


def test_weights_of_another_model(tmp_path):
    path = tmp_path / "w.safetensors"
    tensor_files.write_tensors(zoo.build("deit_t", 10).state_dict(), path, {})
    with pytest.raises(TokredError, match="not for deit_s"):
        zoo.load_file("deit_s", path)
    torch.save({"model": {"unrelated": torch.zeros(3)}}, tmp_path / "w.pth")
    with pytest.raises(TokredError, match="not for deit_t: the file lacks"):
        zoo.load_file("deit_t", tmp_path / "w.pth")


def test_a_checkpoint_file_is_read_without_running_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(TokredError):
        zoo.load_file("deit_t", path)
    assert not (tmp_path / "pwned").exists()
    model = zoo.build("deit_t", 10)
    torch.save({"model": model.state_dict()}, path)
    assert zoo.load_file("deit_t", path).model.num_classes == 10


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    def no_address(*_):
        raise OSError("no address")

    monkeypatch.setattr("socket.getaddrinfo", no_address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(
        TokredError,
        match=r"cannot be loaded \(not in the local cache .*, and .* cannot be reached\): .*--weights",
    ):
        zoo.load_pretrained("vit_small_patch32_224")


@pytest.mark.parametrize("name", ["deit_t", "deit_s"])
def test_shipped_weights_and_their_cards(name):
    loaded = zoo.load_shipped(name)
    card = json.loads((zoo.SHIPPED / f"{name}.json").read_text())
    assert loaded.weights_hash == card["weights_hash"]
    assert card["command"].startswith("tokred train")
    assert {"recipe", "images_seen", "seconds", "validation_top1", "test_top1"} <= set(card)
    assert (
        Recipe(**configs.load("train", name)).model_dump() == card["recipe"]
    )  # the command of the card is the one that was run


@pytest.mark.slow
def test_shipped_weights_do_what_their_card_says():
    loaded = zoo.load_shipped("deit_t")
    got = accuracy(loaded.model, "test", limit=100)
    assert abs(got - loaded.card["test_top1"]) < 10  # three deviations of 100 draws


@pytest.mark.slow
def test_nothing_is_shipped_for_other_models():
    with pytest.raises(
        TokredError, match=r"No PhotoDigits weights are shipped for deit_b .*tokred train --model deit_b"
    ):
        zoo.load_shipped("deit_b")


def test_widening_keeps_the_function_and_breaks_the_symmetry(images):
    small = tiny_vit(init_values=0.1)
    large = zoo.timm.create_model(
        "vit_tiny_patch16_224",
        img_size=48,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=6,
        num_classes=10,
        init_values=0.1,
    ).eval()
    widen(small, large, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(large(images), small(images), atol=1e-5)
    weight = large.blocks[0].mlp.fc2.weight
    assert not torch.allclose(weight[:, : weight.shape[1] // 2], weight[:, weight.shape[1] // 2 :], atol=1e-3)


def test_widening_to_another_depth_is_refused():
    with pytest.raises(TokredError, match="cannot be widened"):
        widen(tiny_vit(), tiny_vit(depth=3), torch.Generator())


def test_another_image_size_resamples_positions_as_timm_does(tmp_path):
    options = {"embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 10}
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", **options)
    file = tmp_path / "small.pth"
    torch.save(small.state_dict(), file)
    large = timm.create_model("vit_tiny_patch16_224", img_size=96, **options)
    theirs = checkpoint_filter_fn(small.state_dict(), large)
    tensors = tensor_files.read_weights(file)
    zoo._resample(large, tensors)
    assert tensors["pos_embed"].shape == (1, 37, 48)
    assert torch.equal(tensors["pos_embed"], theirs["pos_embed"])
    deit = zoo.load_for("deit_t", None, "shipped", img_size=96).model
    assert (deit.patch_embed.grid_size, deit.pos_embed.shape) == ((6, 6), (1, 37, 192))
    same = zoo.load_for("deit_t", None, "shipped", img_size=224)
    assert same.weights_hash == zoo.load_shipped("deit_t").weights_hash
    for size in (8, 100):
        with pytest.raises(TokredError, match="multiple of the model's patches of 16 pixels"):
            zoo.build("deit_t", img_size=size)
    for size in (-1, 0, 4097, 10**20):
        with pytest.raises(TokredError, match=f"from 1 to 4096; got {size}"):
            zoo.outline("deit_t", img_size=size)
