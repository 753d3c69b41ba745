"""`configs`."""

from __future__ import annotations

from tokred.commands.console import show
from tokred.commands.options import Format
from tokred.tables.render import Table, check_format


def configs(form: Format = "table") -> None:
    """List the named configurations for `compare --config`."""
    from tokred.configs import names, summary

    rows = [(name, summary("compare", name)) for name in names("compare")]
    table = Table(headers=("Configuration", "What it compares"), rows=rows, words=frozenset((0, 1)))
    show(table.render(check_format(form)))
