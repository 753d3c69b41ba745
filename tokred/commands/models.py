"""`models`: the timm models that work with tokred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tokred.commands.console import Progress, show
from tokred.commands.options import Format
from tokred.errors import UnknownName
from tokred.tables.render import Table, check_format

if TYPE_CHECKING:
    from tokred.models.catalog import Entry


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Part of a name, or a pattern such as 'vit_*_224'; by default all ViTs."),
    ] = None,
    form: Format = "table",
) -> None:
    """List timm's models with patches and GFLOPs, or the reason why one does not work."""
    check_format(form)
    from tokred.models import catalog, zoo

    names = catalog.find(pattern)
    if not names:
        near = catalog.suggest(pattern or "", list(zoo.ALIASES))
        hint = f" Did you mean: {', '.join(near)}?" if near else ""
        raise UnknownName(f"No timm model matches {pattern!r}.{hint}")
    with Progress(len(names), "models") as advance:
        entries = catalog.catalog(names, advance)
    show(_table(entries, {name: alias for alias, name in zoo.ALIASES.items()}).render(form))


def _table(entries: Sequence[Entry], aliases: Mapping[str, str]) -> Table:
    working = sum(not entry.reason for entry in entries)
    return Table(
        title=f"{working} of {len(entries)} models work",
        headers=("Model", "Alias", "Patches", "GFLOPs", "Works"),
        rows=[
            [
                entry.name,
                aliases.get(entry.name, ""),
                "" if entry.patches is None else str(entry.patches),
                "" if entry.gflops is None else f"{entry.gflops:.2f}",
                entry.reason or "works",
            ]
            for entry in entries
        ],
        words=frozenset((0, 1, 4)),
        styles=["dim" if entry.reason else "" for entry in entries],
    )
