"""A pipe or a device as an input is one sentence, not a wait for ever."""

import os
from pathlib import Path

import pytest
from helpers.command import run

from tokred.utils.files import check_regular, is_stream, read_bytes, read_text

BOARD = ("leaderboard", "add", "--board", "{}/board.csv")
FIT = ("fit", "patchmerger", "--model", "deit_t")


def test_regular_files_folders_and_links_to_them_are_read(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("é", encoding="utf-8")
    link.symlink_to(file)
    assert (read_bytes(link), read_text(file)) == ("é".encode(), "é")
    for path in (file, link, tmp_path, tmp_path / "none"):
        check_regular(path)
        assert not is_stream(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "--model", "deit_t", "--weights", "{}/pipe.pth"),
        ("compare", "--model", "deit_t", "--adapters", "{}/pipe.pth"),
        ("compare", "--config", "{}/pipe.yaml"),
        ("compare", "--schedule", "{}/pipe.yaml"),
        ("compare", "--plugin", "{}/pipe.py"),
        ("data", "{}/images", "--devkit", "{}/pipe.csv"),
        ("data", "{}/images", "--class-map", "{}/pipe.csv"),
        ("show", "{}/pipe.png", "--model", "deit_t", "--data", "photodigits", "--out", "{}/show.png"),
        ("report", "{}/run"),
        (*BOARD, "{}/pipe.csv"),
        (*BOARD, "/dev/zero"),
        ("leaderboard", "export", "{}/run"),
        (*FIT, "--recipe", "{}/pipe.yaml"),
        ("train", "--out", "{}/run"),
    ],
)
def test_a_pipe_is_refused_wherever_a_file_is_read(arguments, tmp_path):
    for name in ("images/a", "images/b", "run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "images/a/1.png").touch()
    for name in ("pth", "yaml", "py", "csv", "png"):
        os.mkfifo(tmp_path / f"pipe.{name}")
    for name in ("run.json", "leaderboard.csv", "checkpoint.pt"):
        os.mkfifo(tmp_path / "run" / name)
    code, text = run(*(argument.replace("{}", str(tmp_path)) for argument in arguments))
    assert code == 2
    assert text.startswith("Error: ")
    assert text.count("\n") == 1


def test_a_pipe_among_images_is_an_image_that_cannot_be_read(tmp_path):
    from tokred.data import folders
    from tokred.errors import UnreadableImage

    os.mkfifo(tmp_path / "a.png")
    source = folders.open_folder(str(tmp_path), None)
    with pytest.raises(UnreadableImage, match="a pipe, a socket or a device"):
        source.images[0]


def test_a_device_is_named():
    with pytest.raises(OSError, match="where a regular file is needed"):
        read_bytes(Path("/dev/zero"))
