"""The registry of reducers: `@register`, and discovery of `methods/`, installed packages and plugins.

This module imports neither torch nor any method. What `names()` and `catalog()` tell about a method is read
from its source, so listing is instant; a method's module is imported when `get` is asked for it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokred.core import plugins
from tokred.errors import TokredError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from tokred.core.reducer import Reducer

ENTRY_POINTS = "tokred.methods"
CORE, ALL = "core", "all"  # the group that is compared by default, and that of every method
FOLDER = Path(__file__).parents[1] / "methods"
FACTS = frozenset({"site", "stages", "knob", "groups", "control"})  # what a listing shows of a class

T = TypeVar("T", bound="type[Reducer]")

_classes: dict[str, type[Reducer]] = {}


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


def register(name: str, paper: str = "") -> Callable[[T], T]:
    """Class decorator: make a `Reducer` known under `name`.

    Raises:
        TokredError: the name is none, or taken by another class; or the class is no Reducer or has no
            docstring.
    """

    def decorate(cls: T) -> T:
        from tokred.core.reducer import Reducer

        if not (isinstance(name, str) and name and name.isprintable() and not set(name) & set(" ,")):
            raise TokredError(f"A method's name is a word such as 'mymethod'; got {name!r}.")
        if not (inspect.isclass(cls) and issubclass(cls, Reducer)):
            raise TokredError(f"@register({name!r}) needs a subclass of tokred.Reducer, got {cls!r}.")
        if not (cls.__doc__ or "").strip():
            raise TokredError(
                f"{cls.__qualname__} needs a docstring: `tokred methods` prints its first line."
            )
        taken = _classes.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TokredError(_clash(name, file_of(taken), file_of(cls)))
        cls.name, cls.paper = name, paper
        _classes[name] = cls
        return cls

    return decorate


def names() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(set(catalog()) | set(_classes))


def select(chosen: Iterable[str] = (CORE,)) -> list[str]:
    """Names of the methods that names of methods and groups stand for, each once, in the order of `chosen`.

    Names of variants are written as `get` names them.

    Raises:
        UnknownName: no such method or group; the message suggests near ones.
        TokredError: `chosen` is one name, or no names at all.
    """
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        raise TokredError(f"Methods are given as a list of names, such as ['lotm', 'tome']; got {chosen!r}.")
    known = catalog()
    groups = {ALL: list(known)}
    for name, entry in known.items():
        for group in entry.groups:
            groups.setdefault(group, []).append(name)
    selected: list[str] = []
    for name in chosen:
        if not isinstance(name, str) or "[" in name:
            selected.append(get(name).name)
            continue
        if name not in known and name not in groups:
            raise UnknownName(did_you_mean("method", name, [*known, *sorted(groups)]))
        selected += [name] if name in known else groups[name]
    return list(dict.fromkeys(selected))


def get(name: str) -> type[Reducer]:
    """The reducer class of a name, of a variant, or of "module:Class" for one that is not registered.

    A variant, such as "lotm[curve=snake]", is a method with other default options.

    A method of an installed package that cannot be imported is a class that raises the reason when it is
    used: one broken package must not stop a comparison of all methods.

    Raises:
        UnknownName: no such method; the message suggests near ones.
        TokredError: the method's module cannot be imported, or two files claim the name.
    """
    if not isinstance(name, str):
        raise TokredError(f"A method is given by its registered name, such as 'lotm'; got {name!r}.")
    if ":" in name:
        return _import_class(name)
    if name in _classes:
        return _classes[name]
    if "[" in name:
        from tokred.core.variants import variant

        method = name.partition("[")[0]
        if not method:
            raise UnknownName(did_you_mean("method", name, names()))
        return variant(get(method), name)
    entry = catalog().get(name)
    if entry is None:
        raise UnknownName(did_you_mean("method", name, names()))
    if entry.origin.startswith("plugin "):
        try:
            cls = _import_class(entry.module)
        except TokredError as error:
            return _broken(f"{name} of the {entry.origin} is broken: {error}")
        return register(name, entry.paper)(cls) if name not in _classes else _classes[name]
    importlib.import_module(entry.module)
    return _classes[name]


def catalog() -> dict[str, Entry]:
    """All methods by name: those in `methods/`, those of installed packages, and registered classes."""
    found: dict[str, Entry] = {}
    for entry in (*_folder_entries(), *map(_plugin_entry, entry_points(group=ENTRY_POINTS))):
        if entry.name in found:
            raise TokredError(_clash(entry.name, found[entry.name].origin, entry.origin))
        found[entry.name] = entry
    for name, cls in _classes.items():
        if name not in found:
            found[name] = _class_entry(cls)
        elif cls.__module__ != found[name].module.partition(":")[0]:
            raise TokredError(_clash(name, found[name].origin, file_of(cls)))
    return dict(sorted(found.items()))


def load_plugin(target: str | Path) -> list[str]:
    """Import a plugin, a .py file or a dotted module name, and return the sorted names of its methods.

    This and installed entry points are the only ways in for foreign code; `plugins.load` says what the plugin
    may import.

    Raises:
        TokredError: it cannot be imported, registers no method, or takes a name that is taken; nothing of it
            is registered then.
    """
    if not isinstance(target, str | Path):
        raise TokredError(f"A plugin is the path of a .py file or the name of a module; got {target!r}.")
    target = str(target)
    before, name = dict(_classes), plugins.module_name(target)
    was_there = name in sys.modules
    try:
        plugins.load(target)
        catalog()  # a name may be taken by a method that nobody has imported yet
        own = [method for method, cls in _classes.items() if _brought(cls, name, method not in before)]
        if not own:
            raise TokredError(
                f"The plugin {target} registers no method; decorate a subclass of tokred.Reducer with "
                '@register("name").'
            )
    except TokredError:
        for method in [
            method for method, cls in _classes.items() if _brought(cls, name, method not in before)
        ]:
            del _classes[method]
        _classes.update(before)
        if not was_there:
            sys.modules.pop(name, None)
        raise
    return sorted(own)


def _folder_entries() -> Iterator[Entry]:
    for path in sorted(FOLDER.glob("*.py")):
        yield from _read_source(path, f"tokred.methods.{path.stem}")


def _plugin_entry(point: EntryPoint) -> Entry:
    distribution = point.dist.name if point.dist else "unknown distribution"
    module, _, attribute = point.value.partition(":")
    origin = f"plugin {distribution} ({point.value})"
    try:
        spec = importlib.util.find_spec(module)
        entries = _read_source(Path(spec.origin), module) if spec and spec.origin else ()
    except (Exception, SystemExit):
        entries = ()  # `get` reports what is wrong with it; listing goes on
    for entry in entries:
        if entry.facts.get("class") == attribute:
            return replace(entry, name=point.name, module=point.value, origin=origin)
    return Entry(point.name, point.value, origin)


def _read_source(path: Path, module: str) -> tuple[Entry, ...]:
    """The classes of a file that carry `@register(...)`, read from its source where that suffices."""
    return _entries(path, module, path.stat().st_mtime_ns)


@cache
def _entries(path: Path, module: str, modified: int) -> tuple[Entry, ...]:
    """`_read_source` of a file as it was last modified."""
    entries: list[Entry] = []
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.ClassDef) and any(map(_is_register, node.decorator_list)):
            try:
                entries.append(_described(node, module, str(path)))
            except (ValueError, TypeError):  # a value that is no literal: only Python knows it
                entries.append(_class_entry(getattr(importlib.import_module(module), node.name)))
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
    arguments = inspect.signature(register).bind(
        *map(ast.literal_eval, decorator.args),
        **{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in decorator.keywords},
    )
    arguments.apply_defaults()
    return Entry(
        name=arguments.arguments["name"],
        module=module,
        origin=origin,
        summary=(ast.get_docstring(node) or "").partition("\n")[0],
        paper=arguments.arguments["paper"],
        facts=_literals(node) | {"class": node.name},
    )


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """The facts that a class body states, annotated or not.

    Raises:
        ValueError: one of them is no literal, or is set within another statement.
    """
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


def _class_entry(cls: type[Reducer]) -> Entry:
    """What an imported class says of itself."""
    return Entry(
        name=cls.name,
        module=cls.__module__,
        origin=file_of(cls),
        summary=(cls.__doc__ or "").strip().partition("\n")[0],
        paper=cls.paper,
        facts={fact: getattr(cls, fact) for fact in FACTS} | {"class": cls.__name__},
    )


def _brought(cls: type, module: str, new: bool) -> bool:
    """Whether a class came with a plugin: from its module, or from one that it imports, tokred's excepted."""
    within = f"{cls.__module__}."
    return within.startswith(f"{module}.") or (new and not within.startswith("tokred."))


def _import_class(target: str) -> type[Reducer]:
    from tokred.core.reducer import Reducer

    module, _, attribute = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is somebody else's
        raise TokredError(
            f"Cannot load the method {target!r}: {error}; expected an importable module:Class."
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, Reducer)):
        raise TokredError(f"{target!r} is not a subclass of tokred.Reducer; give the class itself.")
    return cls


def _broken(message: str) -> type[Reducer]:
    """A stand-in for a method of an installed package that cannot be imported: it fails when it is used."""
    from tokred.core.reducer import Reducer

    class Broken(Reducer):
        error = message

        def __init__(self, n: int, keep: int, dim: int, heads: int) -> None:
            raise TokredError(message)

    return Broken


def error_of(name: str) -> str:
    """Why a method of an installed package cannot be used; empty for all others. This imports the package."""
    entry = catalog().get(name)
    return getattr(get(name), "error", "") if entry and entry.origin.startswith("plugin ") else ""


def file_of(cls: type) -> str:
    """The source file that defines a class, or its module where there is none."""
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):
        return cls.__module__


def _clash(name: str, first: str, second: str) -> str:
    return f"Two methods are called {name!r}: one in {first}, one in {second}; rename one of them."
