"""ImageNet's layouts, and what is wrong with them, on made-up images under the real names."""

import shutil
import tarfile

import numpy as np
import pytest
from helpers.imagenet import WNIDS, opened, val
from scipy.io import savemat
from timm.data import ImageNetInfo

from tokred.data import imagenet, sources
from tokred.errors import TokredError

TRUTH = [490, 361, 171, 822, 297, 482]  # ILSVRC2012 IDs of images 1 to 6


ORDER = np.random.default_rng(1).permutation(
    1000
)  # class i of the sorted WordNet IDs has the ID ORDER[i] + 1


def write_devkit(folder):
    """The devkit's two files: leaves in an order of their own, and inner nodes after them."""
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    rows = [(ORDER[i] + 1, wnid, "a, b", "c", 0) for i, wnid in enumerate(WNIDS)]
    rows = [*sorted(rows), (1001, "n00001740", "entity", "c", 3)]
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind)[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in TRUTH))


#: By the definition of both orders, without any file.
LABELS = [int(np.flatnonzero(number - 1 == ORDER)[0]) for number in TRUTH]


@pytest.fixture
def flat(tmp_path, put):
    put(*(tmp_path / "imagenet" / "val" / val(number) for number in range(1, 7)))
    return tmp_path / "imagenet"


def test_a_flat_folder_without_labels_is_refused_by_name(flat):
    with pytest.raises(
        TokredError, match=r"in one folder, without labels; put ILSVRC2012_devkit_t12.tar.gz beside it"
    ):
        sources.open_source(str(flat))
    assert not sources.open_source(str(flat), labels=False).labelled


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "archive", "files beside the images", "option"])
def test_labels_from_the_devkit_are_those_of_sorted_wordnet_ids(flat, tmp_path, form):
    write_devkit(tmp_path / "kit" / "ILSVRC2012_devkit_t12" / "data")
    kit, option = tmp_path / "kit" / "ILSVRC2012_devkit_t12", None
    if form == "folder":
        shutil.move(kit, flat / "ILSVRC2012_devkit_t12")
    elif form == "archive":
        with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
            archive.add(kit, "ILSVRC2012_devkit_t12")
    elif form == "files beside the images":
        for file in (kit / "data").iterdir():
            shutil.move(file, flat / "val" / file.name)
    else:
        option = str(kit)
    source = opened(flat, devkit=option)
    assert source.labels.tolist() == LABELS
    assert [source.images[i][1] for i in range(6)] == LABELS
    assert "Labels come from ILSVRC2012" in source.note
    assert [number - 1 for number in TRUTH] != LABELS  # which the IDs alone would be


@pytest.mark.parametrize("given", [".", "ILSVRC", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_kaggles_layout(tmp_path, put, given):
    folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    put(
        *(folder / "val" / val(number) for number in (1, 2, 3)),
        folder / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG",
    )
    put(folder / "test" / "ILSVRC2012_test_00000001.JPEG")
    lines = ["ImageId,PredictionString", f"{val(3, '')},{WNIDS[7]} 85 1 499 272 {WNIDS[7]} 1 1 2 2 "]
    lines += [f"{val(1, '')},{WNIDS[999]} 3 4 5 6 ", f"{val(2, '')},{WNIDS[0]} 3 4 5 6 "]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    source = opened(tmp_path / given)
    assert source.labels.tolist() == [999, 0, 7]
    assert (source.classes, source.split) == (1000, "validation")
    if not given.endswith("val"):
        assert not sources.open_source(str(tmp_path / given), "test").labelled


def test_a_devkit_that_is_none_and_one_that_disagrees(flat, tmp_path, put):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TokredError, match=r"notes.csv has no labels of ImageNet's validation set"):
        sources.open_source(str(flat), devkit=str(tmp_path / "notes.csv"))
    with pytest.raises(TokredError, match=r"nowhere has no labels of ImageNet's validation set"):
        sources.open_source(str(flat), devkit=str(tmp_path / "nowhere"))
    write_devkit(tmp_path / "kit")
    put(flat / "val" / val(7))
    with pytest.raises(
        TokredError,
        match=r"has no label for ILSVRC2012_val_00000007.JPEG; it labels .*00001.JPEG to _00000006",
    ):
        sources.open_source(str(flat), devkit=str(tmp_path / "kit"))
    right, sorted_folders = [WNIDS[label] for label in LABELS], tmp_path / "folders"
    put(*(sorted_folders / wnid / val(number) for number, wnid in enumerate(right, 1)))
    assert opened(sorted_folders, devkit=str(tmp_path / "kit")).labels.tolist() == sorted(LABELS)
    shutil.move(sorted_folders / right[0] / val(1), sorted_folders / right[1] / val(1))
    with pytest.raises(
        TokredError,
        match=r"1 of the 6 images in .* are in the wrong class folder according to .*: ILSVRC2012_val_0+1\.",
    ):
        sources.open_source(str(sorted_folders), devkit=str(tmp_path / "kit"))


def test_a_subset_has_the_labels_of_the_whole_for_a_model_of_the_whole(tmp_path, put):
    chosen = [950, 3, 501]
    put(*(tmp_path / "val" / WNIDS[i] / f"{k}.JPEG" for i in chosen for k in range(2)))
    source = opened(tmp_path)
    assert source.labels.tolist() == [3, 3, 501, 501, 950, 950]
    assert [source.images[i][1] for i in range(6)] == source.labels.tolist()
    assert "These are 3 of ImageNet's 1,000 classes: labels are theirs among the 1,000" in source.note
    own = opened(tmp_path, classes=3)  # weights of these three classes
    assert own.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert own.hash != source.hash
    assert own.images_hash == source.images_hash
    with pytest.raises(TokredError, match="has 3 classes, but the weights"):
        opened(tmp_path, classes=10)


def test_the_order_of_the_classes_of_larger_imagenets_is_timms(tmp_path, put):
    names = ImageNetInfo("imagenet-22k").label_names()
    chosen = sorted((names[5], names[20000], names[12]))
    put(*(tmp_path / wnid / "a.JPEG" for wnid in chosen))
    assert opened(tmp_path, classes=21841).labels.tolist() == [names.index(wnid) for wnid in chosen]


def test_a_thousand_class_folders(thousand):
    source = opened(thousand)
    assert source.labels.tolist() == list(range(1000))
    assert source.hash == source.images_hash  # folders tell everything
    assert (
        "50 images of each class; this data has 1,000 images for 1,000: "
        "n01440764 (1), n01443537 (1), n01484850 (1) and 997 more." in source.note
    )


def test_a_class_that_is_missing_and_one_that_is_short_are_named(tmp_path, put, monkeypatch):
    monkeypatch.setattr(imagenet, "PER_CLASS", 2)
    put(
        *(
            tmp_path / wnid / val(2 * i + k)
            for i, wnid in enumerate(WNIDS)
            for k in range(2)
            if i != 17 and (i, k) != (5, 0)
        )
    )
    note = opened(tmp_path).note
    assert f"999 of ImageNet's 1,000 classes (missing: {WNIDS[17]})" in note
    assert f"other numbers in 1 of 999: {WNIDS[5]} (1)." in note


def test_the_training_set_in_its_place(tmp_path, put):
    put(*(tmp_path / "train" / wnid / f"{wnid}_10026.JPEG" for wnid in WNIDS))
    with pytest.raises(TokredError, match="contains ImageNet's training images, by their file names"):
        opened(tmp_path / "train")
    assert "probably trained on them" in opened(tmp_path, split="train").note
    assert opened(tmp_path / "train", split="train").split == "train"
    with pytest.raises(TokredError, match=r"no split 'validation' \(there are: train\)"):
        opened(tmp_path)
    with pytest.raises(TokredError, match=r"--split is the name of a folder in .*; got '\.\./train'"):
        opened(tmp_path / "train", split="../train")


def number_folders(tmp_path, put, numbers):
    put(*(tmp_path / str(number) / "a.JPEG" for number in numbers))
    return tmp_path


def test_folders_that_are_numbers(tmp_path, put):
    source = opened(number_folders(tmp_path / "from 0", put, range(1000)))
    assert "Class folders are numbers, not WordNet IDs: 0 to 999" in source.note
    assert [
        int(source.images.reader.filename(i).split("/")[0]) for i in range(1000)
    ] == source.labels.tolist()
    with pytest.raises(
        TokredError, match="has 1001 classes, .* perhaps because one of them is a background class"
    ):
        opened(number_folders(tmp_path / "background", put, range(1001)))


def test_folders_of_other_names(tmp_path, put):
    put(*(tmp_path / "words" / f"word {chr(97 + i // 40)}{chr(97 + i % 40)}" / "a.JPEG" for i in range(1000)))
    with pytest.raises(TokredError, match=r"are not WordNet IDs \(such as n01440764\) but word"):
        opened(tmp_path / "words", own=False)  # timm's own weights: ImageNet's
    assert opened(tmp_path / "words").note == ""
    put(
        tmp_path / "mixed" / "thumbnails" / "a.JPEG",
        *(tmp_path / "mixed" / wnid / "a.JPEG" for wnid in WNIDS[:3]),
    )
    with pytest.raises(TokredError, match="folders that are not ImageNet classes: thumbnails"):
        opened(tmp_path / "mixed")
    put(
        tmp_path / "strange" / "n00000001" / "a.JPEG",
        *(tmp_path / "strange" / wnid / "a.JPEG" for wnid in WNIDS[:3]),
    )
    with pytest.raises(TokredError, match="not among the 1,000 classes of the weights .*: n00000001"):
        opened(tmp_path / "strange")
    put(*(tmp_path / "natural" / name / "a.JPEG" for name in ("class 10", "class 2")))
    assert "so class 2 comes before class 10" in opened(tmp_path / "natural", classes=2).note


def test_images_beside_class_folders(tmp_path, put):
    put(tmp_path / "thumb.jpg", *(tmp_path / wnid / "a.JPEG" for wnid in WNIDS[:3]))
    with pytest.raises(
        TokredError, match=r"1 of the 4 images in .* are outside its class folders, such as thumb.jpg"
    ):
        opened(tmp_path)
    assert not opened(tmp_path, labels=False).labelled
