"""`check`: the tests that every method must pass."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokred.commands.console import err, say
from tokred.commands.groups import load
from tokred.commands.options import Plugins
from tokred.core import registry
from tokred.errors import TokredError


def check(
    method: Annotated[str, typer.Argument(help="Name of a method, or module:Class.")], plugins: Plugins = None
) -> None:
    """Run the tests that every method must pass."""
    load(plugins)
    if ":" in method:  # module:Class may be in the working directory; installed modules come first
        sys.path.append(str(Path.cwd()))
    from tokred.testing import CHECKS, check_reducer, residual_invariant

    if error := registry.error_of(method):
        raise TokredError(error)
    cls = registry.get(method)
    problems = check_reducer(cls, progress=lambda name: say(f"  {name}"))
    for name, problem in problems.items():
        say(f"{name}: {problem}", err)
    say(f"{method}: {len(CHECKS) - len(problems)} of {len(CHECKS)} checks passed.")
    if problems:
        raise typer.Exit(1)
    say(f"Invariant to the scale of the residual stream: {'yes' if residual_invariant(cls) else 'no'}.")
