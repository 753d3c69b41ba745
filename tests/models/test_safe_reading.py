"""Files are data: nothing in the package runs code that it reads, and a guard over the sources sees to it."""

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import tokred
from tokred import configs
from tokred.errors import TokredError
from tokred.models import tensor_files
from tokred.training import checkpoint

PACKAGE = Path(tokred.__file__).parent

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen",
    "torch.hub.load", "pandas.read_pickle", "pandas.eval", "runpy.run_path", "runpy.run_module",
    "torch.jit.load", "torch.export.load",
    "importlib.machinery.SourceFileLoader", "shutil.unpack_archive", "numpy.lib.format.read_array",
}  # fmt: skip
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
IMPORTERS = {"importlib.import_module", "importlib.util.spec_from_file_location"}
READ_ARCHIVES = {"imagenet.py", "webdataset.py"}  # member by member, in memory
MAY_IMPORT = {
    "__init__.py",
    "entries.py",
    "registry.py",
    "plugins.py",
    "timm_hook.py",
}  # own modules, entry points, and what --plugin names
SAFE_YAML = {"safe_load", "safe_dump", "compose", "YAMLError"}  # compose makes nodes of text and no objects


class Guard(ast.NodeVisitor):
    """Calls that could run code out of a file, with names followed through imports and their aliases."""

    def __init__(self, name="x.py"):
        self.name, self.aliases, self.found = name, {}, []

    def visit_Import(self, node):
        for alias in node.names:
            self.aliases[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )

    def visit_ImportFrom(self, node):
        for alias in node.names:
            self.aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(self, node):
        if isinstance(node, ast.Attribute):
            return f"{self.dotted(node.value)}.{node.attr}"
        return self.aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    def visit_Call(self, node):
        name = self.dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if self.is_unsafe(name, node, keywords):
            self.found.append(f"{self.name}:{node.lineno}: {ast.unparse(node)}")
        self.generic_visit(node)

    def is_unsafe(self, name, node, keywords):
        module, _, function = name.rpartition(".")
        if name == "torch.load":
            return not is_constant(keywords.get("weights_only"), True)
        if module == "yaml":
            return function not in SAFE_YAML
        if name.partition(".")[0] in UNPICKLERS:
            own = function == "loads" and len(node.args) == 1 and isinstance(node.args[0], ast.Call)
            return function != "dumps" and not (
                own and self.dotted(node.args[0].func) == "pickle.dumps"
            )  # a copy of one's own object
        if "allow_pickle" in keywords:
            return not is_constant(keywords["allow_pickle"], False)
        if None in keywords and name in ("numpy.load", "torch.load"):
            return True  # **options could hold anything
        if function in ("extract", "extractall"):
            return True  # members may be named so that they land anywhere
        if name == "tarfile.open":
            return self.name not in READ_ARCHIVES
        if name in IMPORTERS:
            return self.name not in MAY_IMPORT
        if function == "eval" and node.args and module:
            return True  # a data frame's, which takes expressions; a model's takes none
        if name == "torch.export.load":
            return self.name != "export_check.py"  # which reads what has just been written
        return name in FORBIDDEN or ("shell" in keywords and not is_constant(keywords["shell"], False))


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def problems(source, name="x.py"):
    guard = Guard(name)
    guard.visit(ast.parse(source))
    return guard.found


def test_the_package_reads_files_safely():
    found = [
        problem
        for path in sorted(PACKAGE.rglob("*.py"))
        for problem in problems(path.read_text(encoding="utf-8"), path.name)
    ]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\ntorch.load(f, weights_only=flag)",
        "import torch as t\nt.load(f, **options)",
        "from torch import load as read\nread(f)",
        "def f():\n    import yaml\n    return yaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import full_load\nfull_load(text)",
        "import pickle\npickle.load(f)",
        "import pickle\npickle.loads(text)",
        "from pickle import Unpickler\nUnpickler(f).load()",
        "import joblib\njoblib.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f, **options)",
        "import pandas as pd\npd.read_pickle(f)",
        "frame.eval('a + b')",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "import os\nos.system(command)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "from importlib import import_module\nimport_module(name)",
        "import importlib.util\nimportlib.util.spec_from_file_location(name, path)",
        "import tarfile\ntarfile.open(path)",
        "archive.extractall(path)",
    ],
)
def test_the_guard_sees(source):
    assert len(problems(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, map_location='cpu', weights_only=True)",
        "import yaml\nyaml.safe_load(text)",
        "import pickle\npickle.loads(pickle.dumps(x))",
        "import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)",
        "model.eval()\nimport subprocess\nsubprocess.run(['git', 'log'])",
    ],
)
def test_the_guard_lets_pass(source):
    assert not problems(source)


class Evil:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_files_does_not_run(tmp_path):
    trap = tmp_path / "ran"
    torch.save({"model": Evil(trap), "identity": Evil(trap)}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(trap)))
    (tmp_path / "evil.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{trap}']\n")
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(TokredError, match="not a plain file of tensors"):
            tensor_files.read_weights(tmp_path / name)
        with pytest.raises(TokredError, match="was not written by this command"):
            checkpoint.load(tmp_path / name, {})
    with pytest.raises(TokredError, match="cannot be read"):
        configs.load("compare", str(tmp_path / "evil.yaml"))
    np.savez(tmp_path / "evil.npz", labels=np.array([Evil(trap)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"), np.load(tmp_path / "evil.npz") as arrays:
        arrays["labels"]
    assert not trap.exists()
    with (tmp_path / "raw.pth").open("rb") as file:
        pickle.load(file)
    assert trap.exists()  # the trap works
