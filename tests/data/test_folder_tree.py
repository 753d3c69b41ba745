"""Folders are listed as timm lists them, but symbolic links are followed once; what was left out is said."""

import os

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

from tokred.data import sources
from tokred.data.folder_tree import walk
from tokred.errors import TokredError


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in (
        "cat/1.png",
        "cat/10.png",
        "cat/2.PNG",
        "dog/a/1.png",
        "dog2/x.jpeg",
        "dog10/x.png",
        "top.png",
    ):
        picture(root / name)
    (root / "dog" / "notes.txt").write_text("none")
    return root


def test_without_links_it_lists_what_timm_lists(folder):
    tree = walk(folder)
    images, classes = find_images_and_targets(str(folder))
    assert tree.images == [path for path, _ in images]
    names = {place: name for name, place in classes.items()}
    assert [tree.folder_of(path) for path in tree.images] == [names[target] for _, target in images]
    assert tree.note == ""


def test_links_are_followed_once_by_their_real_path(folder, tmp_path):
    before = walk(folder).images
    picture(tmp_path / "elsewhere" / "new.png")
    (folder / "top.png").unlink()
    links = {"cat/up": folder, "cat/self": folder / "cat" / "self", "above": tmp_path, "cat2": folder / "cat"}
    for name, target in {**links, "far": tmp_path / "elsewhere", "near": tmp_path / "elsewhere"}.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    tree = walk(folder)
    names = [os.path.relpath(path, folder) for path in tree.images]
    wanted = {os.path.relpath(path, folder) for path in before} - {"top.png"} | {
        "far/new.png",
        "cat/gone.png",
    }
    assert set(names) == wanted
    assert len(names) == len(wanted)
    left_out = {os.path.relpath(path, folder) for path in tree.left_out}
    assert left_out == {"cat/up", "above", "cat2", "near", "far/back"}
    assert {os.path.relpath(path, folder) for path in tree.dangling} == {"cat/gone.png", "cat/self"}


def test_the_run_says_what_was_left_out(folder):
    (folder / "top.png").unlink()
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "cat" / "lost").symlink_to(folder / "nowhere")
    source = sources.open_source(str(folder))
    assert len(source) == 6
    assert "count already: 1 symbolic link (cat/up)." in source.note
    assert "Without a target: 1 symbolic link (cat/lost)." in source.note


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_named(folder):
    (folder / "cat").chmod(0)
    with pytest.raises(TokredError, match="cat cannot be read"):
        walk(folder)
