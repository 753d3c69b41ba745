"""What is known about methods before they are imported, read from their source to be instant."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokred.core.reducer import Reducer

CORE = "core"  # the group that is compared by default
FOLDER = Path(__file__).parents[1] / "methods"
FACTS = frozenset({"site", "stages", "knob", "groups", "control"})  # what a listing shows of a class


@dataclass(frozen=True)
class Entry:
    """What is known about a method before it is imported.

    Attributes:
        name: the name under which it is registered.
        module: its module, or "module:Class" of an entry point.
        origin: its file, or the distribution of a plugin.
        summary: the first line of its docstring.
        paper: where it was published.
        facts: those of `FACTS` that its class states, and "class", the name of the class.
    """

    name: str
    module: str
    origin: str
    summary: str = ""
    paper: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of groups that hold the method, but for "all"."""
        return tuple(self.facts.get("groups", (CORE,)))


def folder_entries() -> Iterator[Entry]:
    """The methods of tokred itself."""
    for path in sorted(FOLDER.glob("*.py")):
        yield from _read(path, f"tokred.methods.{path.stem}")


def plugin_entry(point: EntryPoint) -> Entry:
    """The method of an entry point of an installed package."""
    distribution = point.dist.name if point.dist else "unknown distribution"
    module, _, attribute = point.value.partition(":")
    origin = f"plugin {distribution} ({point.value})"
    try:
        spec = importlib.util.find_spec(module)
        entries = _read(Path(spec.origin), module) if spec and spec.origin else ()
    except (Exception, SystemExit):
        entries = ()  # `get` reports what is wrong with it; listing goes on
    for entry in entries:
        if entry.facts.get("class") == attribute:
            return replace(entry, name=point.name, module=point.value, origin=origin)
    return Entry(point.name, point.value, origin)


def _read(path: Path, module: str) -> tuple[Entry, ...]:
    """The classes of a file that carry `@register(...)`, read from its source where that suffices."""
    return _entries(path, module, path.stat().st_mtime_ns)


@cache
def _entries(path: Path, module: str, modified: int) -> tuple[Entry, ...]:
    """`_read` of a file as it was last modified."""
    entries: list[Entry] = []
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.ClassDef) and any(map(_is_register, node.decorator_list)):
            try:
                entries.append(_described(node, module, str(path)))
            except (ValueError, TypeError):  # a value that is no literal: only Python knows it
                entries.append(class_entry(getattr(importlib.import_module(module), node.name)))
    return tuple(entries)


def _described(node: ast.ClassDef, module: str, origin: str) -> Entry:
    """What the source of a class tells.

    Raises:
        ValueError: an argument of `register` or a fact that is no literal, or a base class that may hold
            facts of its own.
    """
    (decorator,), (base,) = node.decorator_list, node.bases
    assert isinstance(decorator, ast.Call)
    if _last_name(base) != "Reducer":
        raise ValueError("a base class with facts of its own")
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in decorator.keywords}
    name, paper = _arguments(*map(ast.literal_eval, decorator.args), **named)
    return Entry(
        name=name,
        module=module,
        origin=origin,
        summary=(ast.get_docstring(node) or "").partition("\n")[0],
        paper=paper,
        facts=_literals(node) | {"class": node.name},
    )


def _arguments(name: str, paper: str = "") -> tuple[str, str]:
    """The arguments of `register`."""
    return name, paper


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """The facts that a class body states, annotated or not; a ValueError if Python alone can tell one."""
    facts: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.FunctionDef | ast.Expr | ast.Pass):
            continue
        else:
            raise ValueError("a fact may be set in there")
        names = {target.id if isinstance(target, ast.Name) else "" for target in targets}
        if "" in names:
            raise ValueError("a fact may be unpacked there")
        if names & FACTS and statement.value:
            facts.update(dict.fromkeys(names & FACTS, ast.literal_eval(statement.value)))
    return facts


def _is_register(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and _last_name(decorator.func) == "register"


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def class_entry(cls: type[Reducer]) -> Entry:
    """What an imported class says of itself."""
    return Entry(
        name=cls.name,
        module=cls.__module__,
        origin=file_of(cls),
        summary=(cls.__doc__ or "").strip().partition("\n")[0],
        paper=cls.paper,
        facts={fact: getattr(cls, fact) for fact in FACTS} | {"class": cls.__name__},
    )


def file_of(cls: type) -> str:
    """The source file that defines a class, or its module where there is none."""
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):
        return cls.__module__
