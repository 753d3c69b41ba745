"""The architecture: imports go down one list of packages, without circles, and methods import little."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import tokred

ROOT = Path(tokred.__file__).parents[1]
ORDER = (
    *("errors", "utils", "configs", "tables", "plots", "core", "methods", "models", "data"),
    *("evaluation", "training", "visualize", "report", "leaderboard", "studies", "commands"),
)
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("tokred/**/*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def imports(path):
    """Modules of tokred that a file imports, anywhere in it, and the top-level names of all others."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            targets = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (target if target in MODULES else str(node.module) for target in targets)


def test_imports_go_down_and_never_in_a_circle():
    graph = {name: set(imports(path)) & MODULES.keys() - {name} for name, path in MODULES.items()}
    place = {name: ORDER.index(room) for name in MODULES if (room := f"{name}.".split(".")[1]) in ORDER}
    upward = {(a, b) for a in place for b in graph[a] & place.keys() if place[b] > place[a]}
    assert not upward
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_methods_import_core_errors_and_torch_alone():
    for name, path in MODULES.items():
        if name.startswith("tokred.methods."):
            allowed = (
                "tokred.core.",
                "tokred.errors",
                "torch",
                "math",
                "typing",
                "__future__",
                "ot",
                "scipy",
                "numpy",
            )
            assert all(target.startswith(allowed) for target in imports(path)), name
