"""PhotoDigits is what it says it is; folders are read strictly."""

import hashlib

import numpy as np
import pytest
import timm
from PIL import Image
from sklearn.datasets import load_digits

from tokred.data import loading, photodigits, preprocessing, sources
from tokred.data.photodigits import PhotoDigits, Scene, render, split_digits, token_targets
from tokred.errors import TokredError


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_fixed_splits_have_their_published_hash(split):
    assert PhotoDigits(split).pixel_hash() == photodigits.SPLIT_HASHES[split]


def test_splits_share_no_digit():
    train, validation, test = (set(split_digits(split)) for split in ("train", "validation", "test"))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train | validation | test) == len(load_digits().target)


def test_labels_and_groups_are_those_of_the_source_digits():
    data = PhotoDigits("test")
    target = load_digits().target
    groups = data.groups()
    assert len(data) == len(groups) == 1000
    for index in (0, 1, 399, 400, 999):
        assert render("test", 0, index)[3] == groups[index]
        assert data[index][1] == target[groups[index]]
    assert np.bincount(groups).max() == 3  # 400 digits, each two or three times
    assert np.bincount([target[g] for g in groups], minlength=10).min() > 80


def test_an_image_is_a_function_of_its_index():
    one, two = render("train", 3, 17), render("train", 3, 17)
    assert one[0].tobytes() == two[0].tobytes()
    assert one[0].size == (224, 224)
    assert one[0].tobytes() != render("train", 4, 17)[0].tobytes()
    assert one[0].tobytes() != render("train", 3, 18)[0].tobytes()


def test_ink_covers_a_fraction_of_the_tokens():
    covered = [(token_targets(render("test", 0, i)[1], 3, 14) == 3).mean() for i in range(50)]
    assert min(covered) > 0.01
    assert max(covered) < 0.3


def test_token_targets_by_hand():
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 16))
    mask.paste(255, (16, 0, 18, 16))  # an eighth of the second patch: too little
    assert token_targets(mask, 7, 2).tolist() == [7, 10, 10, 10]


def test_ease_goes_from_black_to_the_benchmark():
    image, mask, *_ = render("train", 0, 0, ease=1.0)
    pixels = np.asarray(image)[np.asarray(mask) == 0]
    assert pixels.max() == 0
    assert Scene.draw(np.random.RandomState(0), 1.0).angle == 0


def test_wrong_splits_and_lengths():
    with pytest.raises(ValueError, match="no split"):
        PhotoDigits("holdout")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give a length"):
        PhotoDigits("train")
    assert len(PhotoDigits("train", length=5).groups()) == 5
    with pytest.raises(TokredError, match="validation and test"):
        sources.open_source(None, "train")


@pytest.fixture
def folder(tmp_path):
    """Two classes with three images each under val/."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "val" / label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / label / f"{i}.png")
    return tmp_path


def test_a_folder_of_class_folders(folder):
    source = sources.open_source(str(folder))
    assert (len(source), source.classes, source.split, source.limited) == (6, 2, "validation", False)
    assert [source.images[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert source.images[2][0].size == (50, 42)
    direct = sources.open_source(str(folder / "val"))
    assert [direct.images[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_the_hash_follows_the_files(folder):
    before = sources.open_source(str(folder)).hash
    assert before == sources.open_source(str(folder)).hash
    Image.new("RGB", (300, 300)).save(folder / "val" / "cat" / "0.png")
    assert before != sources.open_source(str(folder)).hash


def test_an_unreadable_image_is_an_error_that_names_it(folder):
    (folder / "val" / "cat" / "1.png").write_bytes(b"no image")
    source = sources.open_source(str(folder))
    assert source.images[0][1] == 0
    with pytest.raises(TokredError, match=r"cat/1.png cannot be read"):
        source.images[1]


def test_no_such_data(tmp_path):
    with pytest.raises(TokredError, match="No data at"):
        sources.open_source(str(tmp_path / "nowhere"))
    with pytest.raises(TokredError, match="No images can be read"):
        sources.open_source(str(tmp_path))
    (tmp_path / "images.tar").write_bytes(b"")
    with pytest.raises(TokredError, match="is a file; --data takes a folder"):
        sources.open_source(str(tmp_path / "images.tar"))


def test_limit(folder):
    source = sources.open_source(str(folder))
    assert source.limit(None) is source.limit(6) is source
    assert (len(source.limit(4)), source.limit(4).limited) == (4, True)
    with pytest.raises(TokredError, match="at least 1"):
        source.limit(0)


def test_batches_are_fixed_by_index_whatever_the_workers(folder):
    source = sources.open_source(str(folder))
    preparation = preprocessing.prepare(
        timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=1, num_heads=3), source.crop_pct
    )
    digests = []
    for workers in (0, 2):
        digest = hashlib.sha256()
        for images, labels, index, *_ in loading.batches(source, preparation, loading.ranges(6, 4), workers):
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes() + index.numpy().tobytes())
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1]


def test_preparation_is_timms():
    deit = timm.create_model("deit_tiny_patch16_224")
    whole = sources.open_source().crop_pct
    assert (preprocessing.prepare(deit).crop_pct, preprocessing.prepare(deit, whole).crop_pct) == (0.9, 1.0)
    assert preprocessing.prepare(deit).interpolation == "bicubic"


def test_libraries_that_draw_other_pixels_are_noticed(monkeypatch):
    source = sources.open_source()
    assert (source.hash, source.note) == (photodigits.SPLIT_HASHES["test"], "")
    point = photodigits.Image.Image.point
    monkeypatch.setattr(
        photodigits.Image.Image, "point", lambda self, table: point(self, [max(0, v - 1) for v in table])
    )
    monkeypatch.setattr(photodigits.PhotoDigits, "__len__", lambda self: 8)
    monkeypatch.setitem(photodigits.SPLIT_IMAGES, "test", 8)
    other = sources.open_source()
    assert other.hash != source.hash
    assert "do not compare" in other.note
