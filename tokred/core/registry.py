"""The registry of reducers: `@register`, and discovery of `methods/`, installed packages and plugins.

This module imports neither torch nor any method. What `names()` and `catalog()` tell about a method is read
from its source, so listing is instant; a method's module is imported when `get` is asked for it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tokred.core import plugins
from tokred.core.entries import CORE, Entry, class_entry, file_of, folder_entries, plugin_entry
from tokred.errors import TokredError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from tokred.core.reducer import Reducer

ENTRY_POINTS = "tokred.methods"
ALL = "all"  # the group of every method

T = TypeVar("T", bound="type[Reducer]")

_classes: dict[str, type[Reducer]] = {}


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
    for entry in (*folder_entries(), *map(plugin_entry, entry_points(group=ENTRY_POINTS))):
        if entry.name in found:
            raise TokredError(_clash(entry.name, found[entry.name].origin, entry.origin))
        found[entry.name] = entry
    for name, cls in _classes.items():
        if name not in found:
            found[name] = class_entry(cls)
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

    def brought() -> list[str]:
        return [method for method, cls in _classes.items() if _brought(cls, name, method not in before)]

    try:
        plugins.load(target)
        catalog()  # a name may be taken by a method that nobody has imported yet
        if not brought():
            raise TokredError(
                f"The plugin {target} registers no method; decorate a subclass of tokred.Reducer with "
                '@register("name").'
            )
    except TokredError:
        for method in brought():
            del _classes[method]
        _classes.update(before)
        if not was_there:
            sys.modules.pop(name, None)
        raise
    return sorted(brought())


def _brought(cls: type, module: str, new: bool) -> bool:
    """Whether a class came with a plugin: from its module, or from one that it imports, tokred's excepted."""
    within = f"{cls.__module__}."
    return within.startswith(f"{module}.") or (new and not within.startswith("tokred."))


def _import_class(target: str) -> type[Reducer]:
    from tokred.core.reducer import Reducer

    module, _, attribute = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the module is somebody else's
        reason = f"{type(error).__name__} {error}".strip() if isinstance(error, SystemExit) else error
        raise TokredError(
            f"Cannot load the method {target!r}: {reason}; expected an importable module:Class."
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


def _clash(name: str, first: str, second: str) -> str:
    return f"Two methods are called {name!r}: one in {first}, one in {second}; rename one of them."
