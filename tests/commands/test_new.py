"""`tokred new`, and the example of a package with a method."""

import shutil
from pathlib import Path

import pytest
from helpers.command import run
from helpers.outputs import plain
from helpers.processes import Command

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_new_method_passes_its_test(tmp_path):
    code, text = run("new", "my_method", "--out", tmp_path / "methods")
    assert code == 0, text
    assert "my_method.py and" in text
    folder = tmp_path / "methods"
    assert "class MyMethod(Reducer)" in (folder / "my_method.py").read_text()
    arguments = ("-q", "-p", "no:cacheprovider", folder / "test_my_method.py")
    done = Command(tmp_path / "printed", *arguments, program="pytest.console_main").wait()
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    code, text = run("new", "my_method", "--out", folder)
    assert code == 2
    assert "my_method.py exists already; choose another name" in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("My-Method", "lower-case letters, digits and single underscores"),
        ("a__b", "lower-case letters"),
        ("class", "no word of Python's"),
        ("lotm", "There is a method 'lotm' already"),
        ("json", "'json' is an installed Python module"),
    ],
)
def test_bad_names_are_one_sentence(tmp_path, name, reason):
    code, text = run("new", name, "--out", tmp_path)
    assert code == 2
    assert reason in text
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    code, text = run("new", "mine", "--out", tmp_path / "file" / "below")
    assert code == 2
    assert "cannot be written" in text


def entry_points(project):
    """The entry points of a pyproject.toml in the form of an installed distribution's."""
    lines = project.read_text().splitlines()
    start = lines.index('[project.entry-points."tokred.methods"]') + 1
    return "[tokred.methods]\n" + "\n".join(lines[start : lines.index("", start)]).replace('"', "") + "\n"


@pytest.mark.slow
def test_the_example_of_a_package_is_compared(tmp_path):
    """As pip installs it: its module can be imported, and a dist-info folder names its method."""
    plugin = ROOT / "examples" / "plugin"
    site = tmp_path / "site"
    shutil.copytree(plugin, site)
    about = site / "tokred_norms-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tokred-norms\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(entry_points(plugin / "pyproject.toml"))
    arguments = ("--model", "deit_t", "--methods", "norms,random", "--set", "norms.power=1", "--limit", "8")
    options = ("--no-controls", "--workers", "0", "--format", "csv", "--out", tmp_path / "out")
    settings = {"tokred.report.outputs.files": plain}
    command = Command(tmp_path / "printed", "compare", *arguments, *options, path=site, settings=settings)
    done = command.wait()
    assert done.returncode == 0, done.stderr
    assert "norms,power=1.0," in done.stdout
