"""Runs that are the published evaluation of their dense model, and the mark of a baseline that is off."""

import numpy as np
import pytest
from timm.data import ImageNetInfo

from tokred.data import sources
from tokred.data.preprocessing import Preparation
from tokred.data.source import Source
from tokred.evaluation import published_accuracy
from tokred.evaluation.metrics import Scores
from tokred.evaluation.rows import published_columns
from tokred.models.zoo import Loaded
from tokred.tables.results_table import row_notes
from tokred.tables.row import BASELINE, Row

WNIDS = tuple(ImageNetInfo("imagenet-1k").label_names())
DEIT_S = "deit_small_patch16_224.fb_in1k"
LIKE_TIMM = Preparation(None, 224, 0.9, "bicubic")


def source(n=50_000, **changes):
    given = {"name": "val", "split": "validation", "classes": 1000, "class_names": WNIDS, **changes}
    return Source(
        [None] * n, given.pop("name"), given.pop("split"), "hash", np.arange(n), given.pop("classes"), **given
    )


def loaded(published=DEIT_S):
    return Loaded(None, "deit_s", "weights", "hash", published=published)


def test_the_published_evaluation_is_known():
    for name, top1 in (("tiny", 72.190), ("small", 79.856), ("base", 81.980)):
        assert (
            published_accuracy.published(loaded(f"deit_{name}_patch16_224.fb_in1k"), source(), LIKE_TIMM)
            == top1
        )
    named = source(name="hfds/ILSVRC/imagenet-1k", class_names=None)
    words = source(name="hfds/imagenet-1k", class_names=("tench", *WNIDS[1:]))
    assert (
        published_accuracy.published(loaded(), named, LIKE_TIMM)
        == published_accuracy.published(loaded(), words, LIKE_TIMM)
        == 79.856
    )
    assert published_accuracy.note(loaded(), source(), LIKE_TIMM) == ""


@pytest.mark.parametrize(
    "other",
    [
        source(49_999),
        source(10_000),  # such as ImageNetV2
        source(split="train"),
        source(limited=True),
        source(classes=10, class_names=None),
        source(class_names=WNIDS[::-1]),  # labels of another order
        source(class_names=tuple(map(str, range(1000)))),
        source(name="mine", class_names=None),
        sources.open_source(),
    ],
)
def test_other_images_are_not_checked(other):
    assert published_accuracy.published(loaded(), other, LIKE_TIMM) is None
    assert published_accuracy.note(loaded(), other, Preparation(None, 224, 1.0, "bicubic")) == ""


def test_other_images_of_imagenets_classes_are_not_the_papers():
    assert published_accuracy.is_imagenet(source())
    assert published_accuracy.is_imagenet(source(200, limited=True, origin="validation"))
    assert published_accuracy.is_imagenet(
        source(200, limited=True, name="hfds/ILSVRC/imagenet-1k", class_names=None)
    )
    assert not published_accuracy.is_imagenet(source(50_889, name="imagenet-sketch"))
    assert not published_accuracy.is_imagenet(source(3_925, name="imagenette2"))
    assert not published_accuracy.is_imagenet(source(origin="training"))


def test_other_weights_are_not_checked():
    for name in ("", "deit_small_patch16_224", "vit_small_patch16_224.augreg_in1k"):
        assert published_accuracy.published(loaded(name), source(), LIKE_TIMM) is None


@pytest.mark.parametrize("setting", [(224, 0.875, "bicubic"), (224, 0.9, "bilinear"), (256, 0.9, "bicubic")])
def test_another_preparation_is_noted_and_not_checked(setting):
    preparation = Preparation(None, *setting)
    assert published_accuracy.published(loaded(), source(), preparation) is None
    text = published_accuracy.note(loaded(), source(), preparation)
    assert "79.856 %, was measured at 224 pixels, crop 0.9, bicubic; " in text
    assert f"does not apply to {setting[0]} pixels, crop {setting[1]:g}, {setting[2]}." in text


def test_every_figure_is_of_weights_that_timm_has():
    from timm.models import get_pretrained_cfg

    for name, figure in published_accuracy.ACCURACIES.items():
        known = get_pretrained_cfg(name)
        assert figure.fits(Preparation(None, known.input_size[-1], known.crop_pct, known.interpolation))


@pytest.mark.parametrize(
    ("top1", "off"),
    [(79.856, False), (79.806, False), (79.906, False), (79.804, True), (79.908, True), (0.1, True)],
)
def test_a_run_is_marked_when_it_is_off_by_more_than_a_twentieth_of_a_point(top1, off):
    method, baseline = published_columns(79.856, Scores(top1=top1))
    rows = [
        Row("lotm", top1=79.0, **method),
        Row(BASELINE, top1=top1, **baseline),
        Row("tome", status="failed", error="why", **method),
    ]
    assert [row.baseline_off for row in rows] == [off] * 3
    assert [row.published_top1 for row in rows] == [None, 79.856, None]
    assert ("baseline off" in row_notes(rows[0])) == off
    assert row_notes(rows[1])[0].startswith("published: 79.856")
    assert ("off by" in row_notes(rows[1])[0]) == off


def test_without_a_figure_or_an_accuracy_nothing_is_marked():
    for published, scores in ((None, Scores(top1=10.0)), (79.856, Scores()), (79.856, None)):
        assert published_columns(published, scores) == ({}, {})


def test_the_note_tells_by_how_much():
    row = Row(BASELINE, top1=79.5, **published_columns(79.856, Scores(top1=79.5))[1])
    assert row_notes(row) == ["published: 79.856, off by -0.356: check images and preparation"]


@pytest.mark.slow
@pytest.mark.usefixtures("plain_outputs")
def test_a_whole_run_is_marked(tmp_path, monkeypatch):
    """A folder with ImageNet's classes, one image each, and cached weights under a published name."""
    import io

    from helpers.hub import config, in_cache, small
    from PIL import Image

    import tokred

    wanted = published_accuracy.PublishedAccuracy(40.0, 48, 0.8, "bilinear")
    monkeypatch.setitem(published_accuracy.ACCURACIES, "vit_tiny_patch16_224.some", wanted)
    monkeypatch.setattr(published_accuracy, "IMAGES", 1000)
    monkeypatch.setattr(published_accuracy, "CLASSES", 1000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    in_cache(tmp_path, "timm/vit_tiny_patch16_224.some", small(num_classes=1000), config(num_classes=1000))
    file = io.BytesIO()
    Image.new("RGB", (48, 48), (90, 120, 30)).save(file, "JPEG")
    for wnid in WNIDS:
        (tmp_path / "images" / wnid).mkdir(parents=True)
        (tmp_path / "images" / wnid / "1.jpg").write_bytes(file.getvalue())
    settings = {
        "data": str(tmp_path / "images"),
        "methods": ("topk",),
        "stages": (2, 3),
        "batch_size": 250,
        "controls": False,
    }
    done = tokred.compare("hf-hub:timm/vit_tiny_patch16_224.some", 0.2, tmp_path / "run", 0, **settings)
    baseline, topk = done.rows
    assert (baseline.published_top1, baseline.top1) == (40.0, 0.1)  # one image a class, all alike
    assert baseline.baseline_off
    assert topk.baseline_off
    assert topk.published_top1 is None
    assert "off by -39.900" in (tmp_path / "run" / "table.md").read_text()
    limited = tokred.compare("hf-hub:timm/vit_tiny_patch16_224.some", 0.2, None, 0, limit=20, **settings).rows
    assert [(row.published_top1, row.baseline_off) for row in limited] == [(None, False)] * 2
