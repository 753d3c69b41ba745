"""Data sets by name (Hugging Face, torchvision, webdataset shards), and images without labels."""

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
from helpers.command import run
from PIL import Image

from tokred.data import loading, preflight, preprocessing, sources
from tokred.errors import TokredError
from tokred.evaluation.metrics import fidelity
from tokred.evaluation.predictions import Predictions
from tokred.models import zoo
from tokred.tables.results_table import headers, results_table
from tokred.tables.row import Row, rank

WEIGHTS = zoo.SHIPPED / "deit_t.safetensors"


def picture(seed, kind="PNG"):
    made = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(
        made, kind
    )
    return made.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_shard(path, samples):
    """Samples are (key, {extension: bytes})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, parts in samples:
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


LABELS = [3, 1, 0, 7, 7, 2, 9]


@pytest.fixture
def shards(tmp_path):
    """Seven samples in three shards of validation, one shard of training."""
    made = [
        (f"dir/s{i}", {"png": picture(i), "cls": str(label).encode(), "json": b"{}"})
        for i, label in enumerate(LABELS)
    ]
    for number, rows in enumerate((slice(0, 3), slice(3, 5), slice(5, 7))):
        write_shard(tmp_path / "shards" / f"set-validation-{number:03d}.tar", made[rows])
    write_shard(tmp_path / "shards" / "set-train-000.tar", made[:1])
    return tmp_path / "shards"


def test_every_image_of_shards_has_its_place(shards):
    source = sources.open_source(f"wds/{shards}")
    assert source.labels.tolist() == LABELS
    for index in (6, 0, 3):  # in any order
        image, label = source.images[index]
        assert label == LABELS[index]
        assert np.array_equal(np.asarray(image), pixels(picture(index)))
    assert len(sources.open_source(f"wds/{shards}", "train")) == 1
    with pytest.raises(TokredError, match=r"have no split 'test' \(there are: train, validation\)"):
        sources.open_source(f"wds/{shards}", "test")


def test_shards_are_read_as_webdataset_reads_them(shards):
    wds = pytest.importorskip("webdataset")
    pattern = str(shards / "set-validation-{000..002}.tar")
    theirs = list(wds.WebDataset(pattern, shardshuffle=False, empty_check=False))
    ours = sources.open_source(f"wds/{pattern}")
    assert [int(sample["cls"]) for sample in theirs] == ours.labels.tolist()
    assert all(
        np.array_equal(pixels(sample["png"]), np.asarray(ours.images[i][0]))
        for i, sample in enumerate(theirs)
    )


def test_shards_by_pattern_by_folder_and_by_timms_index_are_the_same(shards):
    (shards / "set-validation-001.tar").rename(shards / "set-validation-003.tar")
    first = sources.open_source(f"wds/{shards}")
    timms = f"set-validation-000.tar::{shards}/set-validation-{{002..003}}.tar|7"  # as timm's --val-split
    pattern = sources.open_source("wds/", timms, data_dir=str(shards))
    names = ["set-validation-000.tar", "set-validation-002.tar", "set-validation-003.tar"]
    split = {"name": "validation", "num_samples": 7, "filenames": names, "shard_lengths": [3, 2, 2]}
    (shards / "_info.json").write_text(json.dumps({"splits": {"validation": split}}))
    index = sources.open_source("wds/", data_dir=str(shards))
    assert first.hash == index.hash == pattern.hash
    with pytest.raises(TokredError, match=r"has no split 'train' \(there are: validation\)"):
        sources.open_source(f"wds/{shards}", "train")


def test_batches_of_shards_do_not_depend_on_the_workers(shards):
    source = sources.open_source(f"wds/{shards}")
    preparation = preprocessing.prepare(zoo.build("deit_t", 10, img_size=32))

    def found(workers):
        batches = loading.batches(source, preparation, loading.ranges(7, 3), workers)
        return [
            (batch.indices.tolist(), batch.labels.tolist(), batch.images.sum().item()) for batch in batches
        ]

    assert found(0) == found(2)
    assert [labels for _, labels, _ in found(0)] == [LABELS[:3], LABELS[3:6], LABELS[6:]]


def test_shards_that_cannot_be_used(tmp_path, shards):
    for name, content in (
        ("cut.tar", (shards / "set-train-000.tar").read_bytes()[:700]),
        ("text.tar", b"no archive" * 100),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TokredError, match=f"{name} cannot be read"):
            sources.open_source(f"wds/{tmp_path / name}")
    with tarfile.open(tmp_path / "small.tar", "w:gz") as archive:
        archive.add(shards / "set-train-000.tar")
    with pytest.raises(TokredError, match="it must be a complete, uncompressed tar file"):
        sources.open_source(f"wds/{tmp_path / 'small.tar'}")
    write_shard(tmp_path / "half.tar", [("a", {"png": picture(0), "cls": b"1"}), ("b", {"png": picture(1)})])
    with pytest.raises(TokredError, match=r"1 of the 2 images have no label, such as .*half.tar/b"):
        sources.open_source(f"wds/{tmp_path / 'half.tar'}")
    assert not sources.open_source(f"wds/{tmp_path / 'half.tar'}", labels=False).labelled
    write_shard(tmp_path / "words.tar", [("a", {"png": picture(0), "cls": b"cat"})])
    with pytest.raises(TokredError, match=r"words.tar/a is not a number"):
        sources.open_source(f"wds/{tmp_path / 'words.tar'}")
    write_shard(tmp_path / "none.tar", [("a", {"txt": b"x"})])
    with pytest.raises(TokredError, match="have no images"):
        sources.open_source(f"wds/{tmp_path / 'none.tar'}")
    with pytest.raises(TokredError, match="is not a local file"):
        sources.open_source("wds/https://example.org/a.tar")
    write_shard(
        tmp_path / "from1.tar",
        [(str(i), {"png": picture(0), "json": json.dumps({"label": i + 1}).encode()}) for i in range(10)],
    )
    with pytest.raises(TokredError, match="they seem to count from 1; map the classes with --class-map"):
        preflight.align(sources.open_source(f"wds/{tmp_path / 'from1.tar'}"), 10)


@pytest.mark.slow
def test_shards_through_the_command_line(shards, tmp_path):
    arguments = (
        "--model",
        "deit_t",
        "--weights",
        WEIGHTS,
        "--methods",
        "lotm",
        "--workers",
        "1",
        "--batch-size",
        "2",
        "--img-size",
        "64",
    )
    code, text = run("compare", *arguments, "--data", f"wds/{shards}", "--out", tmp_path / "out")
    assert code == 0, text
    assert np.load(tmp_path / "out" / "predictions.npz")["labels"].tolist() == LABELS
    row = pd.read_csv(tmp_path / "out" / "leaderboard.csv").loc[0]
    assert (row.dataset, row.n_images, row.img_size) == ("wds/shards", 7, 64)


def test_a_local_data_set_of_hugging_face(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for label, name in enumerate(("cat", "dog", "eel")):
        folder = tmp_path / "images" / "validation" / name
        folder.mkdir(parents=True)
        for i in range(2):
            (folder / f"{i}.png").write_bytes(picture(10 * label + i))
    source = sources.open_source(f"hfds/{tmp_path / 'images'}", data_dir=str(tmp_path / "cache"))
    assert (source.labels.tolist(), source.class_names, source.classes) == (
        [0, 0, 1, 1, 2, 2],
        ("cat", "dog", "eel"),
        3,
    )
    assert np.array_equal(np.asarray(source.images[3][0]), pixels(picture(11)))
    (tmp_path / "map.txt").write_text("eel\ndog\ncat\n")
    mapped = sources.open_source(
        f"hfds/{tmp_path / 'images'}", data_dir=str(tmp_path / "cache"), class_map=str(tmp_path / "map.txt")
    )
    assert mapped.labels.tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(TokredError, match=r"No images can be read from .* split 'tset'"):
        sources.open_source(f"hfds/{tmp_path / 'images'}", "tset", data_dir=str(tmp_path / "cache"))


def test_columns_of_other_names_and_none_of_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": picture(i), "path": None} for i in range(4)]
    features = {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b"])}
    made = datasets.Dataset.from_dict(
        {"img": images, "fine": [1, 0, 1, 1]}, features=datasets.Features(features)
    )
    made.to_parquet(tmp_path / "named" / "validation.parquet")
    made.remove_columns("fine").to_parquet(tmp_path / "bare" / "validation.parquet")
    made.remove_columns("img").to_parquet(tmp_path / "blind" / "validation.parquet")
    cache = str(tmp_path / "cache")
    source = sources.open_source(f"hfds/{tmp_path / 'named'}", data_dir=cache)
    assert (source.labels.tolist(), [source.images[i][1] for i in range(4)]) == ([1, 0, 1, 1], [1, 0, 1, 1])
    bare = sources.open_source(f"hfds/{tmp_path / 'bare'}", data_dir=cache)
    assert not bare.labelled
    assert np.array_equal(np.asarray(bare.images[2][0]), pixels(picture(2)))
    with pytest.raises(TokredError, match=r"has no column of images \(there are: fine\)"):
        sources.open_source(f"hfds/{tmp_path / 'blind'}", data_dir=cache)


def test_data_sets_of_torchvision(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):  # the format of the published files: a magic number, sizes, bytes
        head = np.array([0x803, 5, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, 5], dtype=">i4").tobytes() + bytes([7, 2, 1, 0, 4])
        )
    source = sources.open_source("torch/mnist", data_dir=str(tmp_path))
    assert (source.labels.tolist(), source.classes) == ([7, 2, 1, 0, 4], 10)
    image, label = source.images[3]
    assert (image.mode, label, image.info["kind"]) == ("RGB", 0, "greyscale")
    assert np.array_equal(np.asarray(image)[..., 0], digits[3])
    with pytest.raises(TokredError, match="No images can be read from 'torch/mnist'"):
        sources.open_source("torch/mnist", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(TokredError, match="Unknown torchvision dataset"):
        sources.open_source("torch/nonesuch", data_dir=str(tmp_path))


def test_names_that_stream_are_refused():
    for name in ("tfds/imagenet2012", "hfids/imagenet-1k"):
        with pytest.raises(
            TokredError,
            match="streams images, but tokred needs random access; use hfds/",
        ):
            sources.open_source(name)


# Images without labels


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        (tmp_path / "photos" / f"{i}.png").write_bytes(picture(i))
    return tmp_path / "photos"


def test_loose_images_have_no_labels(photos):
    source = sources.open_source(str(photos))
    assert (len(source), source.labelled, source.classes) == (8, False, None)
    assert {source.images[i][1] for i in range(8)} == {-2}
    assert source.images_hash != source.hash
    aligned = preflight.align(source, 1000)
    assert "no labels" in aligned.note
    assert not aligned.take([3, 1]).labelled


@pytest.mark.slow
def test_images_without_labels_are_compared_by_agreement(photos, tmp_path):
    arguments = (
        "--model",
        "deit_t",
        "--weights",
        WEIGHTS,
        "--methods",
        "lotm,topk,random",
        "--workers",
        "0",
        "--img-size",
        "96",
    )
    code, text = run("compare", *arguments, "--data", photos, "--out", tmp_path / "out")
    assert code == 0, text
    assert "validation split, 8 images without labels." in text.splitlines()[0]
    assert "Agreement [95 % interval]" in (tmp_path / "out" / "table.md").read_text()
    table = pd.read_csv(tmp_path / "out" / "leaderboard.csv")
    assert table[["top1", "top1_lo", "top5", "drop", "drop_lo", "p_value"]].isna().all(axis=None)
    arrays = np.load(tmp_path / "out" / "predictions.npz")
    for row in table[1:].itertuples():
        agreement = (arrays[f"{row.method}/prediction"] == arrays["baseline/prediction"]).mean()
        assert row.agreement == pytest.approx(agreement)
        assert row.agreement_lo <= row.agreement <= row.agreement_hi
        assert row.kl == pytest.approx(arrays[f"{row.method}/kl"].mean(), rel=1e-5)
    assert (table.agreement[1:].diff().dropna() <= 0).all()  # best first
    assert pd.isna(table.agreement[0])
    for name in ("table.md", "table.tex", "report.html"):
        content = (tmp_path / "out" / name).read_text()
        assert "Agreement" in content
        assert "Drop" not in content
    code, text = run(
        "sweep", *arguments, "--budgets", "0.2,0.3", "--data", photos, "--out", tmp_path / "sweep"
    )
    assert code == 0, text
    assert "Agreement" in text
    assert "| Agreement [95 % interval] | KL |" in (tmp_path / "sweep" / "table.md").read_text()


def test_fidelity_by_hand():
    def made(prediction, kl):
        made = Predictions.empty(len(prediction))
        made.prediction[:], made.kl[:] = prediction, kl
        return made

    dense = made([1, 2, 3, -1, 5], [0, 0, 0, np.nan, 0])
    scores = fidelity(made([1, 2, 4, -1, 5], [0.1, 0.2, 0.3, np.nan, 0.4]), dense, np.arange(5))
    assert (scores.agreement, scores.kl) == (0.75, pytest.approx(0.25))
    assert scores.agreement_lo <= 0.75 <= scores.agreement_hi
    assert (scores.top1, scores.drop, scores.p_value) == (None, None, None)


def test_tables_without_labels():
    rows = [
        Row("lotm", agreement=0.75, agreement_lo=0.5, agreement_hi=0.9, kl=0.01234, gflops=1.0),
        Row("tome", agreement=0.8, agreement_lo=0.6, agreement_hi=0.95, kl=0.5, gflops=1.0),
        Row("baseline", gflops=2.0),
    ]
    assert [row.method for row in rank(rows)] == ["baseline", "tome", "lotm"]
    table = results_table(rows)
    assert table.headers[1:3] == ("Agreement [95 % interval]", "KL")
    assert table.rows[0][1:3] == ["75.00 [50.00, 90.00]", "0.0123"]
    for text in (table.render("markdown"), table.render("latex")):
        assert "75.00" in text
        assert "Top-1" not in text
    assert headers([Row("lotm", top1=80.0, agreement=0.9)])[1] == "Top-1"
    assert headers([Row("lotm", status="failed")])[1] == "Top-1"
