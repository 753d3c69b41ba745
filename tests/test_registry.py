"""Registration, discovery and plugins: a method is one file."""

import os
import subprocess
import sys

import pytest

from tokred import registry
from tokred.errors import TokredError, UnknownName
from tokred.reducer import Reducer
from tokred.reduction import Keep

METHOD = '''
"""A method in a package of its own."""
from tokred import Keep, Reducer, View, register

@register("centre", paper="nobody, never")
class Centre(Reducer):
    """Keep the tokens with the largest norm."""

    stages = (3, 6)

    def forward(self, view: View) -> Keep:
        order = view.x.float().square().sum(-1).argsort(dim=1, descending=True, stable=True)
        return Keep(order[:, : self.keep], self.n)
'''


@pytest.fixture
def package(tmp_path):
    """An installed distribution with one method and an entry point."""
    (tmp_path / "centremethod.py").write_text(METHOD)
    info = tmp_path / "centremethod-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: centremethod\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokred.methods]\ncentre = centremethod:Centre\n")
    return tmp_path


def tokred(*arguments, path):
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "tokred", *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_a_method_is_one_file_in_a_package(package):
    listed = tokred("methods", path=package)
    assert "centre" in listed.stdout
    assert "largest norm" in listed.stdout
    assert "nobody, never" in listed.stdout
    matched = tokred("match", "--model", "deit_t", "--methods", "centre,lotm", path=package)
    assert matched.returncode == 0, matched.stderr
    assert "3 6" in matched.stdout
    checked = tokred("check", "centre", path=package)
    assert checked.returncode == 0, checked.stderr
    assert "checks passed" in checked.stdout


def test_check_on_a_class_that_is_not_registered(tmp_path):
    (tmp_path / "mine.py").write_text(METHOD.replace('@register("centre", paper="nobody, never")', ""))
    checked = tokred("check", "mine:Centre", path=tmp_path)
    assert checked.returncode == 0, checked.stderr
    missing = tokred("check", "mine:Center", path=tmp_path)
    assert missing.returncode == 2
    assert "expected an importable module:Class" in missing.stderr


def test_check_reports_a_broken_method(tmp_path):
    (tmp_path / "mine.py").write_text(METHOD.replace(": self.keep]", ":]").replace("stages", "layers"))
    checked = tokred("check", "mine:Centre", path=tmp_path)
    assert checked.returncode == 1
    assert "output_count" in checked.stderr


def test_a_plugin_that_fails_to_import_is_listed_and_explained(package):
    (package / "centremethod.py").write_text("import nothing_of_the_kind\n" + METHOD)
    assert tokred("methods", path=package).returncode == 0
    matched = tokred("match", "--methods", "centre", path=package)
    assert matched.returncode == 2
    assert "nothing_of_the_kind" in matched.stderr
    assert "Traceback" not in matched.stderr


def test_a_plugin_that_takes_a_name_is_refused_naming_both(package):
    entry = package / "centremethod-1.0.dist-info" / "entry_points.txt"
    entry.write_text("[tokred.methods]\nlotm = centremethod:Centre\n")
    listed = tokred("methods", path=package)
    assert listed.returncode == 2
    assert "lotm.py" in listed.stderr
    assert "centremethod" in listed.stderr


def test_the_shipped_methods():
    assert {"lotm", "tome", "kmedoids", "dpcknn", "topk", "evit", "random"} <= set(registry.names())
    for name, entry in registry.catalog().items():
        cls = registry.get(name)
        assert entry.summary == cls.__doc__.splitlines()[0]
        assert entry.facts.get("site", "mid") == cls.site
        assert entry.paper == cls.paper


def test_did_you_mean():
    with pytest.raises(UnknownName, match="Unknown method 'tomee'. Did you mean: tome"):
        registry.get("tomee")
    with pytest.raises(UnknownName, match="Known: .*lotm"):
        registry.get("zzzzzz")


@pytest.fixture
def clean():
    """Forget what a test registers."""
    before = dict(registry._classes)
    yield
    registry._classes.clear()
    registry._classes.update(before)


def test_registering_in_a_session(clean):
    @registry.register("in_session", paper="here")
    class InSession(Reducer):
        """Keep the first tokens."""

        def forward(self, view):
            return Keep(view.x.new_zeros(view.x.shape[:2]).argsort(dim=1, stable=True)[:, : self.keep], self.n)

    assert registry.get("in_session") is InSession
    assert registry.catalog()["in_session"].summary == "Keep the first tokens."
    with pytest.raises(TokredError, match=r"Two methods are called 'in_session': one in .*test_registry.py"):

        @registry.register("in_session")
        class Other(Reducer):
            """Something else."""


def test_what_cannot_be_registered(clean):
    with pytest.raises(TokredError, match="subclass of tokred.Reducer"):
        registry.register("thing")(object)  # type: ignore[type-var]
    with pytest.raises(TokredError, match="needs a docstring"):
        registry.register("silent")(type("Silent", (Reducer,), {}))
