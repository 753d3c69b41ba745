"""The catalogue of timm's models: FLOPs against fvcore's trace, reasons, the cache, and suggestions."""

import pytest
from helpers.command import run

from tokred.core.costs import CostTable
from tokred.errors import UnknownName
from tokred.models import catalog, zoo


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit3_small_patch16_224",  # LayerScale
        "vit_small_patch14_reg4_dinov2",  # registers
        "vit_medium_patch16_gap_240",  # no CLS token, average pooling
        "vit_small_patch32_224",
        "vit_base_patch16_siglip_224",  # attention pooling
        "vit_small_patch16_dinov3",  # an Eva
    ],
)
def test_flops_are_those_of_the_trace(name):
    entry = catalog.examine(name)
    costs = CostTable(zoo.build(name))
    assert entry.patches == costs.n
    assert entry.gflops == pytest.approx(costs.dense / 1e9, abs=1e-3)


def test_what_does_not_work_has_its_reason():
    reasons = {
        entry.name: entry.reason for entry in catalog.catalog(["convnext_tiny", "vit_tiny_r_s16_p8_224"])
    }
    assert "convnext" in reasons["convnext_tiny"]
    assert "hybrid" in reasons["vit_tiny_r_s16_p8_224"]
    for name in reasons:
        with pytest.raises(Exception):  # noqa: B017, PT011
            zoo.build(name)


def test_the_second_time_nothing_is_built(monkeypatch):
    first = catalog.catalog(["deit_tiny_patch16_224"])
    monkeypatch.setattr(catalog, "examine", lambda name: pytest.fail("built again"))
    assert catalog.catalog(["deit_tiny_patch16_224"]) == first


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("deit_smal", "deit_small_patch16_224"),
        ("vit_base_patch16", "vit_base_patch16_224"),
        ("deit_x", "deit_"),
    ],
)
def test_suggestions_are_vits(name, best):
    with pytest.raises(UnknownName) as error:
        zoo.timm_name(name)
    assert f"Did you mean: {best}" in str(error.value)
    assert "gcvit" not in str(error.value)


def test_the_command_lists_models():
    code, text = run("models", "deit_tiny", "--format", "csv")
    assert code == 0
    assert "deit_tiny_patch16_224,deit_t,196,1.26,works" in text
    code, text = run("models", "vit_tinny")
    assert code == 2
    assert "Did you mean: vit_tiny" in text
