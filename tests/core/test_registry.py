"""Registration, discovery and plugins: a method is one file."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import run

import tokred as package_of_tokred
from tokred import cli
from tokred.core import entries, fingerprint, plugins, registry
from tokred.core.reducer import Reducer
from tokred.core.reduction import Keep
from tokred.errors import TokredError, UnknownName
from tokred.methods.tome import ToMe
from tokred.utils import provenance

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


def install(folder, text=METHOD, name="centre"):
    """Put a distribution with one method and an entry point into a folder."""
    (folder / f"{name}method.py").write_text(text)
    info = folder / f"{name}method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tokred.methods]\n{name} = {name}method:Centre\n")


@pytest.fixture
def package(tmp_path):
    """A folder with an installed distribution of one method."""
    install(tmp_path)
    return tmp_path


def tokred(*arguments, path):
    """The command line as it is installed, in an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "tokred", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.mark.slow
def test_a_method_in_a_package_is_listed(package):
    listed = tokred("methods", path=package)
    assert "centre" in listed.stdout
    assert "largest norm" in listed.stdout
    assert "nobody, never" in listed.stdout


FORMS = {
    form: "from typing import ClassVar\n\nLAYERS = (3, 6)\n" + METHOD.replace("stages = (3, 6)", form)
    for form in (
        "stages: ClassVar = (3, 6)",
        "stages: ClassVar[tuple[int, ...]] = (3, 6)",
        "layers = stages = (3, 6)",
        "stages = LAYERS",
        "stages = tuple(range(3, 7, 3))",
        "_, stages = None, (3, 6)",
        "if True:\n        stages = (3, 6)",
    )
} | {
    "a base class and a name that is no literal": METHOD.replace("(Reducer):", "(Base):", 1)
    .replace(
        '@register("centre", paper="nobody, never")',
        'class Base(Reducer):\n    stages = (3, 6)\n\n@register("centre" + "", paper="nobody, " + "never")',
    )
    .replace("    stages = (3, 6)\n\n    def", "    def")
}


def tokred_python(code, package):
    """A fresh interpreter that finds the package and this checkout."""
    path = f"{package}{os.pathsep}{Path(package_of_tokred.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """What a fresh interpreter that has imported no method says of papers and layers, by form."""
    folder = tmp_path_factory.mktemp("forms")
    for place, text in enumerate(FORMS.values()):
        install(folder, text.replace("centre", f"centre{place}"), f"centre{place}")
    code = (
        "from tokred.core import registry\n"
        f"for place in range({len(FORMS)}):\n"
        "    entry = registry.catalog()[f'centre{place}']\n"
        "    print(entry.paper, entry.facts['stages'], sep='|')"
    )
    done = tokred_python(code, folder)
    return dict(zip(FORMS, done.stdout.splitlines(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_layers_that_a_class_states_are_listed(listed, form):
    assert listed[form] == "nobody, never|(3, 6)"


def test_listing_shipped_methods_imports_none_of_them():
    code = "import sys; from tokred.core import registry; registry.catalog(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False\n", done.stderr


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


def test_groups_are_what_the_classes_state():
    known = registry.catalog()
    assert registry.select() == [name for name, entry in known.items() if "core" in entry.groups]
    assert registry.select(["all"]) == list(known)
    training_free, learned = registry.select(["training-free"]), registry.select(["learned"])
    assert {*training_free, *learned} == {name for name in known if not registry.get(name).control}
    assert not {*training_free} & {*learned}
    for name, entry in known.items():
        assert entry.groups == registry.get(name).groups
        assert registry.get(name)(16, 12, 48, 3).learned == (name in learned)
        assert bool({"merging", "pruning"} & {*entry.groups}) == (not registry.get(name).control)


def test_groups_and_names_make_one_list():
    pruning = registry.select(["pruning"])
    assert registry.select(["topk", "pruning", "lotm"]) == list(dict.fromkeys(["topk", *pruning, "lotm"]))
    assert registry.select([]) == []
    with pytest.raises(UnknownName, match="Unknown method 'prunning'. Did you mean: pruning"):
        registry.select(["prunning"])


def test_a_plugin_is_compared_by_default_and_may_make_a_group(package):
    code = "from tokred.core import registry; print(*registry.select({}))"

    def selected(groups):
        done = tokred_python(code.format(groups), package)
        return done.stdout.split()

    assert "centre" in selected('["core"]')
    text = METHOD.replace("stages = (3, 6)", 'groups = ("mine",)')
    (package / "centremethod.py").write_text(text)
    assert "centre" not in selected('["core"]')
    assert selected('["mine"]') == ["centre"]


def test_did_you_mean():
    with pytest.raises(UnknownName, match="Unknown method 'tomee'. Did you mean: tome"):
        registry.get("tomee")
    with pytest.raises(UnknownName, match="Known: .*lotm"):
        registry.get("zzzzzz")


@pytest.fixture
def clean():
    """Forget what a test registers, but for the shipped methods, whose modules stay imported."""
    for name in registry.names():
        registry.get(name)
    before = dict(registry._classes)
    yield
    registry._classes.clear()
    registry._classes.update(before)


@pytest.fixture
def importable(tmp_path, clean, monkeypatch):
    """A folder on the path; what was imported from it is forgotten."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
def test_a_method_is_one_file_in_a_package(importable):
    install(importable)
    code, text = run("match", "--model", "deit_t", "--methods", "centre,lotm")
    assert code == 0, text
    assert "3 6" in text
    code, text = run("check", "centre")
    assert code == 0, text
    assert "checks passed" in text


def test_check_on_a_class_that_is_not_registered(importable):
    (importable / "mine.py").write_text(METHOD.replace('@register("centre", paper="nobody, never")', ""))
    code, text = run("check", "mine:Centre")
    assert code == 0, text
    code, text = run("check", "mine:Center")
    assert code == 2
    assert "expected an importable module:Class" in text


def test_check_reports_a_broken_method(importable):
    (importable / "mine.py").write_text(METHOD.replace(": self.keep]", ":]").replace("stages", "layers"))
    code, text = run("check", "mine:Centre")
    assert code == 1
    assert "output_count" in text


def test_check_goes_on_where_a_method_exits(importable):
    (importable / "leaves.py").write_text(
        METHOD.replace("        order =", "        raise SystemExit(0)\n        order =")
    )
    code, text = run("check", "leaves:Centre")
    assert code == 1
    assert "SystemExit: 0" in text


def test_a_plugin_that_fails_to_import_is_listed_and_explained(importable):
    install(importable, "import nothing_of_the_kind\n" + METHOD)
    code, text = run("methods")
    assert code == 0
    assert "centre" in text
    code, text = run("match", "--methods", "centre")
    assert code == 2
    assert "nothing_of_the_kind" in text
    assert "Traceback" not in text


def test_registering_in_a_session(clean):
    @registry.register("in_session", paper="here")
    class InSession(Reducer):
        """Keep the first tokens."""

        def forward(self, view):
            return Keep(
                view.x.new_zeros(view.x.shape[:2]).argsort(dim=1, stable=True)[:, : self.keep], self.n
            )

    assert registry.get("in_session") is InSession
    assert registry.catalog()["in_session"].summary == "Keep the first tokens."
    with pytest.raises(TokredError, match=r"Two methods are called 'in_session': one in .*test_registry.py"):

        @registry.register("in_session")
        class Other(Reducer):
            """Something else."""


@pytest.mark.parametrize("name", [None, 3, [], "", " ", "a b", "a,b", "a\0b"])
def test_names_that_a_method_cannot_have(clean, name):
    known = registry.names()
    with pytest.raises(TokredError, match="A method's name is a word"):
        registry.register(name)(ToMe)
    assert registry.names() == known


def test_what_cannot_be_registered(clean):
    with pytest.raises(TokredError, match="subclass of tokred.Reducer"):
        registry.register("thing")(object)  # type: ignore[type-var]
    with pytest.raises(TokredError, match="needs a docstring"):
        registry.register("silent")(type("Silent", (Reducer,), {}))


@pytest.fixture
def plugin(tmp_path, clean):
    """A function that writes a plugin file and returns its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def test_a_plugin_file(plugin):
    path = plugin(METHOD)
    before = list(sys.path)
    assert registry.load_plugin(path) == ["centre"]
    assert "centre" in registry.names()
    cls = registry.get("centre")
    assert registry.catalog()["centre"].origin == path
    assert registry.load_plugin(path) == ["centre"]  # once
    assert registry.get("centre") is cls
    assert sys.path == before
    assert sys.modules[cls.__module__].Centre is cls
    assert cls.__module__ == plugins.module_name(os.path.relpath(path))  # however the path is written


def test_a_failed_plugin_takes_no_shipped_method_along(plugin, monkeypatch):
    """As in a process that has not imported LOTM: the plugin is the first to do so."""
    monkeypatch.setattr(package_of_tokred.methods, "lotm", package_of_tokred.methods.lotm)
    monkeypatch.delitem(sys.modules, "tokred.methods.lotm")
    del registry._classes["lotm"]
    with pytest.raises(TokredError, match="ZeroDivisionError"):
        registry.load_plugin(plugin("import tokred.methods.lotm\n1 / 0\n"))
    assert registry.get("lotm").name == "lotm"


def test_two_plugin_files_of_one_name(plugin):
    assert registry.load_plugin(plugin(METHOD, "a/mine.py")) == ["centre"]
    assert registry.load_plugin(plugin(METHOD.replace("centre", "edge"), "b/mine.py")) == ["edge"]
    assert registry.get("centre") is not registry.get("edge")


def test_a_plugin_finds_helpers_beside_it_but_shadows_nothing(plugin):
    plugin("LAYERS = (3, 6)\n", "helper_of_centre.py")
    plugin("raise SystemExit('shadowed')\n", "colorsys.py")
    sys.modules.pop("colorsys", None)
    text = METHOD.replace(
        "from tokred", "import colorsys\nfrom helper_of_centre import LAYERS\nfrom tokred"
    ).replace("(3, 6)", "LAYERS")
    assert registry.load_plugin(plugin(text)) == ["centre"]
    assert registry.get("centre").stages == (3, 6)


def test_a_plugin_module_by_its_name(plugin, monkeypatch):
    folder = Path(plugin(METHOD, "centre_package/inner.py")).parent
    (folder / "__init__.py").write_text("from . import inner\n")
    monkeypatch.chdir(folder.parent)  # modules are found where the command runs
    assert registry.load_plugin("centre_package") == ["centre"]
    assert registry.load_plugin("centre_package.inner") == ["centre"]
    for name in [name for name in sys.modules if name.startswith("centre_package")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import os\n\n1 / 0\n",
            r"mine.py cannot be loaded: ZeroDivisionError: division by zero \(line 3\); fix it",
        ),
        (
            "def f():\n    raise ValueError('two\\nlines')\n\nf()\n",
            r"mine.py cannot be loaded: ValueError: two \(line 2\)",
        ),
        ("x = 1\nif x\n", r"mine.py cannot be loaded: SyntaxError: expected ':' \(line 2\)"),
        (
            "import nothing_of_the_kind\n",
            r"mine.py cannot be loaded: ModuleNotFoundError: .*'nothing_of_the_kind' \(line 1\)",
        ),
        ("import sys\nsys.exit(3)\n", r"mine.py cannot be loaded: SystemExit: 3 \(line 2\)"),
        ("import json\njson.loads('{')\n", r"mine.py cannot be loaded: JSONDecodeError: .*line 2\)"),
        ("raise KeyError\n", r"mine.py cannot be loaded: KeyError: no message \(line 1\)"),
        ("x = 1\n", r"mine.py registers no method; decorate a subclass of tokred.Reducer"),
        ("import tokred.methods.lotm\n", r"mine.py registers no method"),
        (
            METHOD.replace('"centre"', '"lotm"'),
            r"Two methods are called 'lotm': one in .*lotm.py, one in .*mine.py",
        ),
        (
            METHOD.replace("(Reducer)", "").replace("self.n", "0"),
            r"mine.py cannot be loaded: @register\('centre'\) needs .*\(line 5\)",
        ),
        (METHOD + "\nraise ValueError\n", r"mine.py cannot be loaded: ValueError"),
    ],
)
def test_a_plugin_that_is_wrong_is_one_sentence_and_leaves_nothing(plugin, text, message):
    known, before = registry.names(), list(sys.path)
    path = plugin(text)
    for _ in range(2):  # and the same the second time
        with pytest.raises(TokredError, match=message) as error:
            registry.load_plugin(path)
        assert "\n" not in str(error.value)
    assert registry.names() == known
    assert sys.path == before
    assert plugins.module_name(path) not in sys.modules


@pytest.mark.parametrize(
    "target",
    ["missing.py", "./folder", "no_such_module", "no_such.module", "tokred.no_such", "", "loop", "loop.py"],
)
def test_a_plugin_that_is_not_there(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for link in ("loop", "loop.py"):
        (tmp_path / link).symlink_to(link)
    with pytest.raises(TokredError, match="expected the path of a .py file or the dotted name of a module"):
        registry.load_plugin(target)


@pytest.mark.parametrize("target", [None, 3, b"plugin.py", ["plugin.py"]])
def test_what_is_no_plugin_is_one_sentence(target):
    with pytest.raises(TokredError, match="A plugin is the path of a .py file or the name of a module; got"):
        registry.load_plugin(target)


@pytest.mark.parametrize("chosen", [None, 3, "lotm"])
def test_what_is_no_list_of_methods_is_one_sentence(chosen):
    with pytest.raises(TokredError, match="Methods are given as a list of names"):
        registry.select(chosen)


def test_plugins_on_the_command_line(plugin):
    path, broken = plugin(METHOD, "my methods.py"), plugin("1 / 0\n", "broken.py")
    code, text = run("methods", "--plugin", path)
    assert code == 0
    assert "largest norm" in text
    code, text = run("methods", "--plugin", path, "--plugin", broken)
    assert code == 2
    assert "broken.py cannot be loaded: ZeroDivisionError: division by zero (line 1)" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("command", [["methods"], ["match"], ["check", "lotm"], ["fit", "lotm"]])
def test_commands_that_take_plugins(command, plugin):
    with pytest.raises(TokredError, match="broken.py cannot be loaded: ZeroDivisionError"):
        cli.app([*command, "--plugin", plugin("1 / 0\n", "broken.py")], standalone_mode=False)


def test_a_plugin_is_matched(plugin, capsys):
    cli.app(
        ["match", "--model", "deit_t", "--methods", "centre", "--plugin", plugin(METHOD)],
        standalone_mode=False,
    )
    assert "3 6" in capsys.readouterr().out


def test_source_hash(plugin):
    path = plugin(METHOD)
    registry.load_plugin(path)
    assert fingerprint.source_hash("centre") == hashlib.sha256(METHOD.encode()).hexdigest()
    other = plugin(METHOD.replace('"centre"', '"edge"').replace("True)", "False)"), "other.py")
    registry.load_plugin(other)
    assert fingerprint.source_hash("edge") != fingerprint.source_hash("centre")
    assert (
        fingerprint.source_hash("lotm")
        == hashlib.sha256((entries.FOLDER / "lotm.py").read_bytes()).hexdigest()
    )
    with pytest.raises(UnknownName, match="Did you mean: lotm"):
        fingerprint.source_hash("lotmm")


def test_the_source_hash_of_a_class_without_a_file(clean, monkeypatch):
    cls = type("Typed", (Reducer,), {"__doc__": "Typed into a session.", "__module__": "typed_in"})
    registry.register("typed")(cls)
    first = fingerprint.source_hash("typed")
    assert first == fingerprint.source_hash("typed")
    monkeypatch.setattr(fingerprint, "_SESSION", "of another process")
    assert fingerprint.source_hash("typed") != first


def test_code_hash(tmp_path, monkeypatch):
    copy = tmp_path / "tokred"
    shutil.copytree(
        Path(package_of_tokred.__file__).parent, copy, ignore=shutil.ignore_patterns("weights", "__pycache__")
    )

    def of_the_copy():
        provenance.code_hash.cache_clear()
        return provenance.code_hash()

    want = of_the_copy()
    assert want == provenance.code_hash()
    monkeypatch.setattr(provenance, "__file__", str(copy / "utils" / "provenance.py"))
    assert of_the_copy() == want  # wherever it lies, with or without weights and caches
    module = copy / "methods" / "lotm.py"
    module.write_text(module.read_text() + "\n")
    changed = of_the_copy()
    assert changed != want
    module.rename(copy / "methods" / "lotm2.py")
    assert of_the_copy() not in (changed, want)
    provenance.code_hash.cache_clear()


@pytest.mark.slow
def test_a_run_knows_the_modules_that_a_plugin_brings(plugin, tmp_path):
    (tmp_path / "centre_helper.py").write_text("FACTOR = 1\n")
    registry.load_plugin(plugin(METHOD.replace("from tokred", "import centre_helper\nfrom tokred", 1)))
    before = fingerprint.software(["centre", "lotm"])
    assert set(before) >= {"code", "torch", "method centre"}
    assert "method lotm" not in before  # tokred's own are in its code
    (tmp_path / "centre_helper.py").write_text("FACTOR = 2\n")
    after = fingerprint.software(["centre", "lotm"])
    assert {key for key in before if before[key] != after[key]} == {"method centre"}


@pytest.mark.slow
def test_a_plugin_in_the_working_directory(plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare = type(sys)("bare_module")
    bare.__file__ = "bare_module.py"  # as torch.classes has, which lies nowhere
    monkeypatch.setitem(sys.modules, "bare_module", bare)
    registry.load_plugin(Path(plugin(METHOD)).name)
    assert "method centre" in fingerprint.software(["centre"])
