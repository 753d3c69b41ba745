"""ImageNet's layouts, and what is wrong with them, on made-up images under the real names."""

import io
import json
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from helpers.command import run
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

from tokred.data import imagenet, preflight, sources
from tokred.errors import TokredError
from tokred.models import zoo
from tokred.training.fit.data import open_images

WNIDS = ImageNetInfo("imagenet-1k").label_names()
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def jpeg():
    made = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(made, "JPEG")
    return made.getvalue()


@pytest.fixture
def put(jpeg):
    def put(*paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)

    return put


def val(number, suffix=".JPEG"):
    return f"ILSVRC2012_val_{number:08d}{suffix}"


def opened(path, classes=1000, own=True, split=None, **options):
    return preflight.align(sources.open_source(str(path), split, **options), classes, own=own)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random model of 1,000 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    safetensors.torch.save_file(
        {key: value.half() for key, value in timm.create_model("deit_tiny_patch16_224").state_dict().items()},
        path,
    )
    return path


def compare(weights, *arguments):
    small = (
        "--model",
        "deit_t",
        "--methods",
        "lotm",
        "--workers",
        "0",
        "--precision",
        "fp32",
        "--img-size",
        "96",
    )
    return run("compare", *small, "--weights", weights, *arguments)


# Layouts


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
        TokredError, match=r"in one folder, without labels: put ILSVRC2012_devkit_t12.tar.gz beside it"
    ):
        sources.open_source(str(flat))
    assert not sources.open_source(str(flat), labels=False).labelled


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
        match=r"1 of the 6 images in .* lie in another class's folder than .*: ILSVRC2012_val_00000001\.",
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


# What is wrong, before any work


@pytest.fixture(scope="module")
def thousand(tmp_path_factory, jpeg):
    root = tmp_path_factory.mktemp("whole") / "val"
    for number, wnid in enumerate(WNIDS, 1):
        (root / wnid).mkdir(parents=True)
        (root / wnid / val(number)).write_bytes(jpeg)
    return root


def test_a_thousand_class_folders(thousand):
    source = opened(thousand)
    assert source.labels.tolist() == list(range(1000))
    assert source.hash == source.images_hash  # folders tell everything
    assert (
        "50 images of each class, here there are 1,000 images for 1,000: "
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
    with pytest.raises(TokredError, match="holds ImageNet's training images, by the names of the files"):
        opened(tmp_path / "train")
    assert "probably learned from them" in opened(tmp_path, split="train").note
    assert opened(tmp_path / "train", split="train").split == "train"
    with pytest.raises(TokredError, match=r"no split 'validation' \(there are: train\)"):
        opened(tmp_path)


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
    with pytest.raises(TokredError, match=r"are no WordNet IDs \(such as n01440764\) but word"):
        opened(tmp_path / "words", own=False)  # timm's own weights: ImageNet's
    assert opened(tmp_path / "words").note == ""
    put(
        tmp_path / "mixed" / "thumbnails" / "a.JPEG",
        *(tmp_path / "mixed" / wnid / "a.JPEG" for wnid in WNIDS[:3]),
    )
    with pytest.raises(TokredError, match="folders of images beside those of ImageNet's classes: thumbnails"):
        opened(tmp_path / "mixed")
    put(
        tmp_path / "strange" / "n00000001" / "a.JPEG",
        *(tmp_path / "strange" / wnid / "a.JPEG" for wnid in WNIDS[:3]),
    )
    with pytest.raises(TokredError, match="none of the 1,000 classes of the weights .*: n00000001"):
        opened(tmp_path / "strange")
    put(*(tmp_path / "natural" / name / "a.JPEG" for name in ("class 10", "class 2")))
    assert "so that class 2 comes before class 10" in opened(tmp_path / "natural", classes=2).note


def test_images_beside_class_folders(tmp_path, put):
    put(tmp_path / "thumb.jpg", *(tmp_path / wnid / "a.JPEG" for wnid in WNIDS[:3]))
    with pytest.raises(
        TokredError, match=r"1 of the 4 images in .* lie beside its class folders, such as thumb.jpg"
    ):
        opened(tmp_path)
    assert not opened(tmp_path, labels=False).labelled


# Class maps


def test_class_maps(tmp_path, put):
    put(*(tmp_path / "data" / name / "a.png" for name in ("cat", "dog", "eel")))
    forms = {
        "a.txt": "dog\neel\nape\ncat\n",
        "b.csv": "class,index\ncat,3\ndog,0\neel,1\n",
        "c.csv": "cat,3\ndog,0\neel,1\n",
        "d.json": json.dumps({"eel": 1, "dog": 0, "cat": 3}),
        "e.json": json.dumps(["dog", "eel", "ape", "cat"]),
        "f.txt": "dog  Canis\neel x\nape y\ncat Felis, the cat\n",
    }
    hashes = set()
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        source = opened(tmp_path / "data", classes=4, class_map=str(tmp_path / name))
        assert source.labels.tolist() == [3, 0, 1], name
        assert source.images[0][1] == 3
        hashes.add(source.hash)
    assert len(hashes) == 1
    assert sources.open_source(str(tmp_path / "data")).hash not in hashes  # another question than without
    with pytest.raises(TokredError, match=r"count from 0 to 2: one is 3"):
        opened(tmp_path / "data", classes=3, class_map=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.pkl", "x", "reading a pickle can run code"),
        ("a.xml", "x", "its form is not known"),
        ("a.txt", "cat\n", "lacks 1 of the 2 classes of data: dog"),
        ("a.txt", "cat\ndog\ncat\n", "has the class 'cat' twice"),
        ("a.csv", "cat,1,2\n", "has not two columns"),
        ("a.csv", "cat,1\ndog,two\n", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "3", "neither names nor indices"),
        ("a.json", '{"cat": -1, "dog": 0}', "negative index"),
        ("a.txt", "", "has no class"),
    ],
)
def test_class_maps_that_are_none(tmp_path, put, name, text, words):
    put(*(tmp_path / "data" / label / "a.png" for label in ("cat", "dog")))
    (tmp_path / name).write_text(text)
    with pytest.raises(TokredError, match=words):
        opened(tmp_path / "data", classes=2, class_map=str(tmp_path / name))
    with pytest.raises(TokredError, match="No class map at"):
        opened(tmp_path / "data", classes=2, class_map=str(tmp_path / "none.txt"))


def test_a_class_map_in_another_order_than_imagenets_is_marked(tmp_path, put):
    put(*(tmp_path / "data" / wnid / "a.JPEG" for wnid in WNIDS[:3]))
    (tmp_path / "map.txt").write_text("\n".join([WNIDS[1], WNIDS[0], *WNIDS[2:]]))
    source = opened(tmp_path / "data", class_map=str(tmp_path / "map.txt"))
    assert source.labels.tolist() == [1, 0, 2]
    assert (
        "map.txt has 2 of ImageNet's classes at other indices than the weights of ImageNet-1K have: "
        f"{WNIDS[0]}, {WNIDS[1]}." in source.note
    )


# Chance


def test_chance_is_told_from_more():
    assert "right on 0 of 200 images, which is chance with 1,000 classes" in preflight.at_chance(0, 200, 1000)
    assert preflight.at_chance(1, 1000, 1000)
    assert not preflight.at_chance(10, 200, 1000)
    assert not preflight.at_chance(0, 20, 1000)  # too few to tell
    assert not preflight.at_chance(20, 200, 10)  # classes too few to tell


# Through the command line


def test_a_subset_through_the_command_line(tmp_path, put, weights):
    put(*(tmp_path / "data" / "val" / WNIDS[i] / val(i) for i in (4, 700, 40)))
    code, text = compare(weights, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 0, text
    assert "These are 3 of ImageNet's 1,000 classes" in text.splitlines()[0]
    assert "Input: 96 x 96 pixels, crop 0.9, bicubic." in text.splitlines()[0]
    assert np.load(tmp_path / "out" / "predictions.npz")["labels"].tolist() == [4, 40, 700]
    row = pd.read_csv(tmp_path / "out" / "leaderboard.csv").loc[1]
    assert (row.img_size, row.crop_pct, row.interpolation, row.n_images) == (96, 0.9, "bicubic", 3)
    assert (
        "labels are theirs among the 1,000"
        in (tmp_path / "out" / "report.html").read_text().partition("All columns")[0]
    )
    assert (
        "3 of ImageNet's 1,000 classes" in json.loads((tmp_path / "out" / "run.json").read_text())["notes"][0]
    )


def test_a_model_at_chance_is_noticed(tmp_path, thousand, weights):
    code, text = compare(
        weights, "--data", thousand, "--limit", "208", "--batch-size", "104", "--out", tmp_path / "out"
    )
    assert code == 0, text
    assert text.count("which is chance with 1,000 classes") == 1
    assert "chance" in json.loads((tmp_path / "out" / "run.json").read_text())["notes"][1]


def test_crop_and_interpolation_are_options_and_part_of_the_run(tmp_path, put, weights):
    put(*(tmp_path / "photos" / "deep" / f"{i}.jpg" for i in range(2)), tmp_path / "photos" / "b.jpg")
    common = ("--data", tmp_path / "photos", "--no-labels", "--out", tmp_path / "out")
    code, text = compare(weights, *common, "--crop-pct", "0.875", "--interpolation", "bilinear")
    assert code == 0, text
    assert "Input: 96 x 96 pixels, crop 0.875, bilinear." in text
    code, text = compare(weights, *common)
    assert "a run with another crop_pct, interpolation" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--crop-pct", "0"], "--crop-pct is a fraction"),
        (["--crop-pct", "87.5"], "--crop-pct is a fraction"),
        (["--interpolation", "bicubik"], "Did you mean: bicubic"),
        (["--img-size", "0"], "--img-size is the side"),
        (
            ["--img-size", "100"],
            "--img-size must be a multiple of the model's patches of 16 pixels, such as 96; got 100",
        ),
        (["--no-labels"], "--no-labels means nothing for PhotoDigits"),
        (["--class-map", "x.txt"], "--class-map means nothing for PhotoDigits"),
        (["--data", "tfds/imagenet2012"], "tfds/ streams images"),
        (["--data", "torch/cifar10"], "needs the folder in which its files lie: --data-dir"),
        (["--data", "wds/nowhere"], "No shard at nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path):
    code, text = run(
        "compare", "--model", "deit_t", "--methods", "lotm", *arguments, "--out", tmp_path / "out"
    )
    assert code == 2
    assert words in text
    assert text.count("\n") == 1


def test_the_preflight_by_itself(tmp_path, put, weights, thousand):
    code, text = run("data", thousand, "--model", "deit_t")
    assert code == 0, text
    assert "1,000 of 1,000, images of each: 1" in text
    assert "50 images of each class, here there are 1,000 images for 1,000" in text
    put(*(tmp_path / "data" / name / "a.png" for name in ("x", "y")))
    code, text = run("data", tmp_path / "data", "--model", "deit_t", "--weights", weights)
    assert code == 2
    assert "has 2 classes, but the weights (random.safetensors) have 1000" in text
    assert text.count("\n") == 1
    code, text = run("data", tmp_path / "data", "--model", "deit_t", "--weights", weights, "--no-labels")
    assert (code, "have no labels" in text) == (0, True)
    code, text = run(
        "data", tmp_path / "data", "--model", "deit_t", "--weights", zoo.SHIPPED / "deit_t.safetensors"
    )
    assert (code, "has 2 classes" in text) == (2, True)


def test_a_fit_on_some_of_imagenets_classes_learns_their_labels(tmp_path, put):
    put(*(tmp_path / split / WNIDS[i] / "a.JPEG" for split in ("train", "val") for i in (5, 900)))
    images = open_images(str(tmp_path), 0, 1000)
    assert [images.train[i][1] for i in range(2)] == [5, 900]
    assert [images.validation.images[i][1] for i in range(2)] == [5, 900]
    assert "2 of ImageNet's 1,000 classes" in images.note


def test_sizes_of_plans_without_images():
    code, text = run("match", "--model", "deit_t", "--methods", "lotm", "--img-size", "96")
    assert code == 0, text
    assert "0.209 G" in text  # less than a sixth of 1.258
