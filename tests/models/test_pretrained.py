"""Weights as the field has them: timm's names and tags, many layouts of files, the hub's cache, offline."""

import argparse
import hashlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest
import safetensors.torch
import timm
import torch
from helpers.hub import REVISION, TINY, config, in_cache, small

from tokred.core.backbone import check_supported
from tokred.data import preprocessing
from tokred.errors import TokredError, UnknownName
from tokred.models import pretrained, tensor_files, zoo


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "home"


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_tags_are_part_of_names():
    assert zoo.timm_name("deit_s.fb_in1k") == "deit_small_patch16_224.fb_in1k"
    assert (
        zoo.timm_name("vit_base_patch16_224.augreg_in21k_ft_in1k")
        == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    )
    assert zoo.timm_name("hf-hub:org/name") == "hf-hub:org/name"
    with pytest.raises(UnknownName, match="no weights tagged 'fb_in2k' in timm; it has: fb_in1k"):
        zoo.timm_name("deit_s.fb_in2k")
    with pytest.raises(UnknownName, match="For one of the Hugging Face hub give hf-hub:timm/deit"):
        zoo.timm_name("timm/deit")


@pytest.mark.slow
def test_timm_weights_come_from_the_cache(home):
    """The real loading code, on made-up weights under the real name."""
    model = zoo.build("deit_t")
    in_cache(home, "timm/deit_tiny_patch16_224.fb_in1k", model)
    for name in ("deit_t", "deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"):
        loaded = zoo.load_for(name, None)
        assert same(loaded.model, model)
        assert loaded.weights == "timm deit_tiny_patch16_224.fb_in1k"
        assert loaded.published == "deit_tiny_patch16_224.fb_in1k"
        assert loaded.weights_hash == tensor_files.hash_weights(model)


@pytest.mark.slow
def test_hf_home_is_where_the_cache_is(tmp_path):
    """As a user has it: the variables of the environment, another process, the command line's own loading."""
    in_cache(tmp_path, "org/small", small(), config())
    program = (
        "from tokred.models import zoo; "
        "loaded = zoo.load_for('hf-hub:org/small', None); print(loaded.weights_hash)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == tensor_files.hash_weights(small()), done.stderr


def test_a_hub_model_is_prepared_for_as_its_own_configuration_says(home):
    in_cache(home, "org/small", small(1), config())
    for loaded in (
        zoo.load_for("hf-hub:org/small", None, "shipped"),
        zoo.load_for(TINY, "hf-hub:org/small"),
    ):
        assert same(loaded.model, small(1))
        assert (loaded.weights, loaded.published) == ("hf-hub:org/small", "")
        wanted = {"input_size": (3, 48, 48), "crop_pct": 0.8, "interpolation": "bilinear"}
        found = preprocessing.data_config(loaded.model)
        assert {key: found[key] for key in wanted} == wanted
        assert (list(found["mean"]), list(found["std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    check_supported(zoo.build("hf-hub:org/small"))
    with pytest.raises(
        TokredError,
        match="hf-hub:org/small holds vit_tiny_patch16_224, not deit_s; give it as the model, --model hf-hub",
    ):
        zoo.load_for("deit_s", "hf-hub:org/small")


def test_only_timms_own_repositories_are_timms_weights(home):
    names = ["timm/vit_tiny_patch16_224.some", "other/vit_tiny_patch16_224.some"]
    for name in names:
        in_cache(home, name, small(), config())
    found = [zoo.load_pretrained(f"hf-hub:{name}").published for name in names]
    assert found == ["vit_tiny_patch16_224.some", ""]
    assert pretrained.published_name("hf-hub:timm/vit_tiny_patch16_224.some@older", None) == ""


def test_a_folder_of_the_hubs_layout(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config()))
    safetensors.torch.save_file(small(2).state_dict(), tmp_path / "model.safetensors")
    loaded = zoo.load_for(f"local-dir:{tmp_path}", None, "shipped")
    assert same(loaded.model, small(2))
    assert loaded.published == ""
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        TokredError, match=r"No model can be loaded from local-dir:.*expected a folder with config.json"
    ):
        zoo.load_pretrained(f"local-dir:{tmp_path}")


def test_without_a_network_the_message_says_what_to_fetch(home):
    url = "https://huggingface.co/timm/deit_small_patch16_224.fb_in1k"
    with pytest.raises(TokredError) as caught:
        zoo.load_for("deit_s", None)
    text = str(caught.value)
    assert (
        f"download model.safetensors from {url} and give it with "
        "--model deit_small_patch16_224.fb_in1k --weights FILE" in text
    )
    assert "HF_HOME" in text
    assert str(home) in text
    assert text.count("\n") == 0
    with pytest.raises(
        TokredError,
        match=r"config.json and model.safetensors from https://huggingface.co/org/none .*local-dir:FOLDER",
    ):
        zoo.build("hf-hub:org/none")


def endpoint(monkeypatch, port):
    """Another hub than huggingface.co, as HF_ENDPOINT would name it."""
    address, constants = f"http://127.0.0.1:{port}", "huggingface_hub.constants"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.ENDPOINT", address)
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    return address


@pytest.mark.loopback
def test_a_hub_that_does_not_answer(home, monkeypatch):
    """It takes a connection and never answers: what is cached loads, else there is a sentence, both soon."""
    in_cache(home, "org/small", small(3), config())
    monkeypatch.setattr(pretrained, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = endpoint(monkeypatch, server.getsockname()[1])
        start = time.monotonic()
        assert same(zoo.load_pretrained("hf-hub:org/small").model, small(3))
        with pytest.raises(
            TokredError, match=f"{address} cannot be reached\\): download model.safetensors from .*HF_HOME"
        ):
            zoo.load_pretrained("deit_s")
        assert time.monotonic() - start < 10


class Repository(http.server.BaseHTTPRequestHandler):
    """The hub's answers about the files of one repository."""

    files: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        content = self.files.get(
            self.path.removeprefix(f"/org/small/resolve/{REVISION}/").removeprefix("/org/small/resolve/main/")
        )
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", REVISION)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.mark.loopback
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_are_downloaded_once(home, monkeypatch, name):
    buffer = io.BytesIO()
    torch.save(small(4).state_dict(), buffer)
    weights = (
        safetensors.torch.save(small(4).state_dict()) if name.endswith("safetensors") else buffer.getvalue()
    )
    monkeypatch.setattr(Repository, "files", {"config.json": json.dumps(config()).encode(), name: weights})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Repository) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint(monkeypatch, server.server_port)
        assert same(zoo.load_pretrained("hf-hub:org/small").model, small(4))
        with pytest.raises(TokredError, match="The model hf-hub:org/none cannot be loaded"):
            zoo.load_pretrained("hf-hub:org/none")
        server.shutdown()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(zoo.load_pretrained("hf-hub:org/small").model, small(4))  # from the cache now


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps(config("resnet_of_mine"))])
def test_a_broken_configuration_is_one_sentence(home, content):
    snapshot = in_cache(home, "org/small", small(), config())
    (snapshot / "config.json").write_text(content)
    with pytest.raises(TokredError, match="hf-hub:org/small"):
        zoo.load_pretrained("hf-hub:org/small")


def test_a_damaged_cache_is_one_sentence(home):
    snapshot = in_cache(home, "org/small", small(), config())
    (snapshot / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(TokredError, match="hf-hub:org/small cannot be loaded"):
        zoo.load_pretrained("hf-hub:org/small")


@pytest.mark.slow
def test_weights_without_a_classifier_are_refused(tmp_path, monkeypatch):
    """The weights of DINO and its like tell no classes apart, which the empty head of their tag says."""
    name = "vit_small_patch16_224.dino"
    torch.save(zoo.build(name).state_dict(), tmp_path / "dino.pth")
    with pytest.raises(TokredError, match=r"The weights \(dino.pth\) have no classifier"):
        zoo.load_for(name, str(tmp_path / "dino.pth"))


@pytest.mark.slow
def test_a_tag_decides_how_images_are_prepared_for_a_file(tmp_path):
    """One architecture, two ways to normalise."""
    for tag, mean in (("augreg_in21k_ft_in1k", 0.5), ("dino", 0.485)):
        model = zoo.build(f"vit_small_patch16_224.{tag}", 7)
        safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
        loaded = zoo.load_file(f"vit_small_patch16_224.{tag}", tmp_path / "w.safetensors")
        assert preprocessing.data_config(loaded.model)["mean"][0] == mean
        assert (
            loaded.published == f"vit_small_patch16_224.{tag}"
        )  # who names the tag says that the file is those weights


@pytest.fixture(scope="module")
def tensors():
    return zoo.build("deit_t", 10).state_dict()


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model_ema": state, "model": {key: 0 * value for key, value in state.items()}},
        lambda state: {
            "model": state,
            "args": argparse.Namespace(lr=0.1, model="deit_tiny_patch16_224", betas=[0.9]),
        },
    ],
)
def test_layouts_of_checkpoints(tmp_path, tensors, layout):
    for name in ("w.pth", "w.bin"):
        torch.save(layout(tensors), tmp_path / name)
        found = tensor_files.read_weights(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def with_prefix(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {"state_dict": with_prefix("model.", state), "epoch": 3},  # Lightning
        lambda state: {"state_dict": {**with_prefix("model.net.", state), "loss.weight": torch.ones(3)}},
        lambda state: {"model_state_dict": state},
        lambda state: {"model_state_dict": with_prefix("module.", state)},
        lambda state: {
            "state": 1,
            "model": {"state_dict": {"model_state_dict": with_prefix("backbone.", state)}},
        },
        lambda state: {
            "student": with_prefix("module.backbone.", {key: 0 * value for key, value in state.items()}),
            "teacher": {**with_prefix("backbone.", state), "head.mlp.0.weight": torch.ones(2, 2)},
        },  # DINO
        lambda state: {
            **with_prefix("student.backbone.", {key: 0 * value for key, value in state.items()}),
            **with_prefix("teacher.backbone.", state),
        },
        lambda state: with_prefix("_orig_mod.module.model.", state),
    ],
)
def test_wrappers_of_training_code_are_taken_off(tmp_path, tensors, layout):
    content = layout(tensors)
    torch.save(content, tmp_path / "w.ckpt")
    files = [tmp_path / "w.ckpt"]
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        safetensors.torch.save_file(content, tmp_path / "w.safetensors")
        files.append(tmp_path / "w.safetensors")
    for file in files:
        assert same(zoo.load_file("deit_t", file).model, zoo_model(tensors))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", "model.", "model.module.backbone."])
def test_wrappers_in_safetensors(tmp_path, tensors, prefix):
    safetensors.torch.save_file(with_prefix(prefix, tensors), tmp_path / "w.safetensors")
    assert same(zoo.load_file("deit_t", tmp_path / "w.safetensors").model, zoo_model(tensors))


def zoo_model(tensors):
    model = zoo.build("deit_t", 10)
    model.load_state_dict(tensors)
    return model


def test_names_that_do_not_fit_are_shown_from_both_sides(tmp_path):
    torch.save({f"encoder.layer.{i}.weight": torch.ones(2) for i in range(5)}, tmp_path / "w.pth")
    with pytest.raises(TokredError) as caught:
        zoo.load_file("deit_t", tmp_path / "w.pth")
    text = str(caught.value)
    assert "the file lacks cls_token, pos_embed and 1" in text
    assert "it has encoder.layer.0.weight, encoder.layer.1.weight and 3 more" in text


def test_weights_for_larger_images_name_their_size(tmp_path):
    file = tmp_path / "w.safetensors"
    whole = timm.create_model("deit_tiny_patch16_224", img_size=384, num_classes=3)
    safetensors.torch.save_file(whole.state_dict(), file)
    with pytest.raises(
        TokredError, match="are for images of 384 pixels, but deit_t takes 224: give --img-size 384"
    ):
        zoo.load_file("deit_t", file)
    assert same(zoo.load_file("deit_t", file, img_size=384).model, whole)


def test_weights_that_are_not_finite_are_refused(tmp_path, tensors):
    broken = {**tensors, "blocks.3.mlp.fc1.bias": torch.full((768,), torch.nan)}
    safetensors.torch.save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(
        TokredError, match=r"\(w.safetensors\) hold numbers that are not finite, in blocks.3.mlp.fc1.bias"
    ):
        zoo.load_for("deit_t", str(tmp_path / "w.safetensors"))


@pytest.mark.slow
def test_files_of_deit_iii_call_layer_scale_otherwise(tmp_path):
    model = zoo.build("deit3_small_patch16_224", 10)
    official = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in model.state_dict().items()
    }
    assert official.keys() != model.state_dict().keys()
    torch.save({"model": official}, tmp_path / "w.pth")
    assert same(zoo.load_file("deit3_small_patch16_224", tmp_path / "w.pth").model, model)


def test_an_official_file_is_known_by_its_hash(tmp_path, tensors, monkeypatch):
    path = tmp_path / "renamed.pth"
    torch.save({"model": tensors}, path)
    assert zoo.load_file("deit_t", path).published == ""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    real = zoo.get_pretrained_cfg("deit_tiny_patch16_224.fb_in1k")
    assert real.url.endswith("deit_tiny_patch16_224-a1311bcf.pth")
    monkeypatch.setattr(real, "url", f"https://example.org/deit_tiny_patch16_224-{digest[:8]}.pth")
    monkeypatch.setattr(zoo, "get_pretrained_cfg", lambda name: real)
    assert zoo.load_file("deit_t", path).published == "deit_tiny_patch16_224.fb_in1k"


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_settings_are_let_in_and_nothing_else(tmp_path, tensors):
    for number, trap in enumerate(
        (Evil(tmp_path / "ran"), argparse.Namespace(hidden=Evil(tmp_path / "ran")))
    ):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": tensors, "args": trap}, path)
        with pytest.raises(TokredError, match="not a plain file of tensors"):
            tensor_files.read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(TokredError, match="holds no state dict"):
        tensor_files.read_weights(tmp_path / "list.pth")
    with pytest.raises(TokredError, match="No weight file at"):
        zoo.load_for("deit_t", str(tmp_path / "none.pth"))
