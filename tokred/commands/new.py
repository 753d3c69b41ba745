"""`new`: a method file and its test, from a template."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from tokred.commands.console import say
from tokred.core import registry
from tokred.errors import TokredError

_METHOD = Template('''"""$class_name: keep the tokens with the largest norm."""

from tokred import Keep, Reducer, View, register


@register("$name", paper="unpublished")
class $class_name(Reducer):
    """Keep the patches whose features have the largest norm.

    Replace this by what your method does; its first line is what `tokred methods` prints.
    """

    def forward(self, view: View) -> Keep:
        score = view.x.float().square().sum(-1)  # [B, N]
        order = score.argsort(dim=1, descending=True, stable=True)
        return Keep(order[:, : self.keep], self.n)
''')
_TEST = Template('''"""The tests that every method must pass, and a reference in NumPy."""

import numpy as np
import pytest
from $name import $class_name

from tokred.testing import CHECKS, make_view


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_checks(check):
    check($class_name)


def test_the_kept_tokens_are_those_of_the_reference():
    view = make_view(n=16)
    kept = $class_name(n=16, keep=5, dim=48, heads=3)(view).index.numpy()
    norms = np.square(view.x.numpy()).sum(-1)
    assert np.array_equal(kept, np.argsort(-norms, axis=1, kind="stable")[:, :5])
''')


def new(
    name: Annotated[str, typer.Argument(help="Name of the method, such as my_method.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the two files.")] = Path(),
) -> None:
    """Write a method file and its test, to start from."""
    _check(name)
    words = {"name": name, "class_name": "".join(word.capitalize() for word in name.split("_"))}
    files = {
        folder / f"{name}.py": _METHOD.substitute(words),
        folder / f"test_{name}.py": _TEST.substitute(words),
    }
    for path in files:
        if path.exists():
            raise TokredError(f"{path} exists already; choose another name, or another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TokredError(
            f"{folder} cannot be written ({error.strerror}); choose another with --out."
        ) from error
    method, test = files
    say(f"Wrote {method} and {test}.")
    say(f"Test it: pytest {test}")
    say(f"Compare it: tokred compare --methods {name},lotm --plugin {method}")


def _check(name: str) -> None:
    """Refuse a name that is no module's, or that is taken.

    Raises:
        TokredError: the reason.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise TokredError(
            "A method's name has lower-case letters, digits and single underscores, and is no word of "
            f"Python's, such as my_method; got {name!r}."
        )
    if name in registry.names():
        raise TokredError(f"There is a method {name!r} already; choose another name.")
    if importlib.util.find_spec(name) is not None:
        raise TokredError(
            f"{name!r} is an installed Python module, which the file would hide; choose another name."
        )
