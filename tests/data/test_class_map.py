"""Class maps: which class each label is."""

import json

import pytest
from helpers.imagenet import WNIDS, opened

from tokred.data import sources
from tokred.errors import TokredError


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
    with pytest.raises(TokredError, match=r"which are 0 to 2: one is 3"):
        opened(tmp_path / "data", classes=3, class_map=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.pkl", "x", "reading a pickle can run code"),
        ("a.xml", "x", "its form is not known"),
        ("a.txt", "cat\n", "lacks 1 of the 2 classes of data: dog"),
        ("a.txt", "cat\ndog\ncat\n", "has the class 'cat' twice"),
        ("a.csv", "cat,1,2\n", "a line without two columns"),
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
    with pytest.raises(TokredError, match="There is no class map at"):
        opened(tmp_path / "data", classes=2, class_map=str(tmp_path / "none.txt"))


def test_a_class_map_in_another_order_than_imagenets_is_marked(tmp_path, put):
    put(*(tmp_path / "data" / wnid / "a.JPEG" for wnid in WNIDS[:3]))
    (tmp_path / "map.txt").write_text("\n".join([WNIDS[1], WNIDS[0], *WNIDS[2:]]))
    source = opened(tmp_path / "data", class_map=str(tmp_path / "map.txt"))
    assert source.labels.tolist() == [1, 0, 2]
    assert (
        "map.txt has 2 of ImageNet's classes at other indices than in ImageNet-1K: "
        f"{WNIDS[0]}, {WNIDS[1]}." in source.note
    )
