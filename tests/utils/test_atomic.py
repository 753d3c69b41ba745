"""Files are written whole or not at all, and every failure is one sentence."""

import os
from pathlib import Path

import pytest

from tokred.errors import TokredError
from tokred.utils.atomic import check_writable, check_writable_file, replace_file, write_all, writing


def test_a_file_is_replaced_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "new" / "file"
    replace_file(path, b"one")
    path.chmod(0o640)
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_pipe_is_written_to_and_a_link_is_followed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, b"one")
    assert os.read(reader, 10) == b"one"
    os.close(reader)
    assert pipe.is_fifo()
    check_writable_file(pipe)
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    replace_file(link, b"two")
    assert link.is_symlink()
    assert file.read_bytes() == b"two"


@pytest.mark.parametrize("name", ["", "/", "."])
def test_a_file_without_a_name_is_one_sentence(name):
    with pytest.raises(TokredError, match="Cannot write"):
        replace_file(Path(name), b"")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokredError, match=r"^Cannot write .*file \(No space left on device\); make room\.$"):
        write_all(tmp_path, {"file": b"new"}, "make room")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_a_reason_says_what_it_has():
    with (
        pytest.raises(TokredError, match=r"^Cannot write x \(odd\); what was there before is unchanged\.$"),
        writing("x"),
    ):
        raise OSError("odd")


def test_a_file_where_a_folder_is_needed_and_the_other_way_round(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        TokredError, match="is a file, and the results need a folder; choose one with --board"
    ):
        check_writable(file, "--board")
    with pytest.raises(TokredError, match="is a folder; give the name of a file with --out"):
        check_writable_file(tmp_path)
    with pytest.raises(TokredError, match="cannot be written .*choose another with --out"):
        check_writable_file(file / "below" / "name")
    check_writable_file(tmp_path / "deep" / "er" / "name")
    assert list((tmp_path / "deep" / "er").iterdir()) == []
