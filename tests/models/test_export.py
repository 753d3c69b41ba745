"""Exported models against the models themselves."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch

import tokred
from tokred.core import registry
from tokred.core.plan import Plan
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, UnsupportedModel
from tokred.evaluation.export_check import check, load
from tokred.testing import tiny_vit

OPTIONS = {"kmedoids": {"iterations": 1}, "lotm": {}, "patchmerger": {}, "tome": {}}
METHODS = tuple(OPTIONS)  # every operator that reducers use


def build(method):
    return ReducedViT(copy.deepcopy(tiny_vit(depth=2)), Plan(method, (2,), (24,), OPTIONS[method]))


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    """The file of each method, exported once, with any number of images."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    return {m: tokred.export(build(m), folder / f"{m}.onnx", dynamic_batch=True) for m in METHODS}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_onnx_takes_any_number_of_images(method, onnx_files):
    run, model = load(onnx_files[method], "onnx"), build(method)
    for count in (1, 3, 6):
        images = torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            assert torch.allclose(run(images), model(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lotm", "kmedoids", "tome"])
def test_ties_are_broken_as_in_the_model(method, onnx_files):
    """In a blank image all patches but for their positions are alike."""
    model, images = build(method), torch.zeros(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(load(onnx_files[method], "onnx")(images), model(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tome"])
def test_pt2_takes_any_number_of_images(method, tmp_path, images):
    model = build(method)
    run = load(tokred.export(model, tmp_path / "x.pt2", dynamic_batch=True), "pt2")
    for batch in (images[:1], images):
        assert torch.equal(run(batch), model(batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_base_patch16_siglip_224"])
def test_rotary_and_pooling_models_take_any_number_of_images(name, tmp_path):
    tiny = {"embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 56, "patch_size": 14}
    model = tokred.reduce(timm.create_model(name, **tiny).eval(), "tome", tokens=(12,), stages=(1,))
    run = load(tokred.export(model, tmp_path / "x.pt2", dynamic_batch=True), "pt2")
    images = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for batch in (images[:1], images):
            assert torch.allclose(run(batch), model(batch), atol=1e-5)


@pytest.mark.slow
def test_a_checked_file_has_an_agreement_and_a_speed_up(onnx_files):
    model, images = build("lotm"), torch.randn(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    result = check(onnx_files["lotm"], "onnx", model, images, dynamic=True, rounds=3)
    assert (result.images, result.same) == (5, 5)
    assert result.difference < 1e-5
    assert set(result.speedups) == {1, 16}
    assert "5 of 5 images" in result.table("title").render("markdown")


def test_the_guide_lists_all_methods():
    guide = Path(__file__).parents[2] / "docs" / "export.md"
    rows = [line for line in guide.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    exported, on_host = (re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows[:2])
    methods = [registry.get(name) for name in registry.names()]
    assert exported == [cls.name for cls in methods if not (cls.adaptive() or cls.host)]
    assert on_host == [cls.name for cls in methods if cls.host]


@pytest.mark.slow
def test_exporting_leaves_the_mode_alone(tmp_path):
    model = build("lotm").train()
    modes = [part.training for part in model.modules()]
    tokred.export(model, tmp_path / "x.pt2")
    assert [part.training for part in model.modules()] == modes


def test_another_form_is_one_sentence(tmp_path):
    with pytest.raises(TokredError, match="onnx or pt2, not as 'engine'"):
        tokred.export(build("lotm"), tmp_path / "x.engine")
    with pytest.raises(TokredError, match="onnx or pt2, not as tensor"):
        tokred.export(build("lotm"), tmp_path / "x.pt2", torch.ones(2))  # type: ignore[arg-type]


class OnHost(Reducer):
    """Decide on the host."""

    name, host = "onhost", True

    def forward(self, view):
        return Keep(torch.arange(self.keep).expand(view.x.shape[0], -1), self.n)


def test_what_onnx_cannot_hold_is_one_sentence(tmp_path):
    pytest.importorskip("onnxscript")
    model = ReducedViT(tiny_vit(), Plan(OnHost, (2,), (20,)))
    with pytest.raises(UnsupportedModel, match="onhost computes on the host"):
        tokred.export(model, tmp_path / "x.onnx")


class ReadsNumbers(OnHost):
    """Look at a number, which no graph can."""

    name, host = "readsnumbers", False

    def forward(self, view):
        return super().forward(view) if float(view.x.sum()) < 1e9 else None


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_counts_that_depend_on_the_image_are_refused(tmp_path, form):
    model = tokred.reduce(tiny_vit(), "ats", stages=(2,), threshold=0.5)
    with pytest.raises(UnsupportedModel, match="ats cannot be exported: how many tokens it keeps depends"):
        tokred.export(model, tmp_path / f"x.{form}")


def test_what_cannot_be_traced_is_one_sentence(tmp_path):
    model = ReducedViT(tiny_vit(), Plan(ReadsNumbers, (2,), (20,)))
    with pytest.raises(UnsupportedModel, match="readsnumbers cannot be exported to pt2: "):
        tokred.export(model, tmp_path / "x.pt2")


@pytest.mark.parametrize("path", [None, 3, "", b"x.onnx", "x\0.onnx"])
def test_what_is_no_path_is_one_sentence(path):
    with pytest.raises(TokredError, match="The file to write is given by its path"):
        tokred.export(build("lotm"), path)


def test_what_is_no_reduced_model_is_refused(tmp_path):
    with pytest.raises(TokredError, match=r"takes what tokred\.reduce returns; got str"):
        tokred.export("deit_s", tmp_path / "x.pt2")
