"""`methods`: the registered methods."""

from __future__ import annotations

from typing import Any

from tokred.commands.console import show_records
from tokred.commands.groups import load
from tokred.commands.options import Format, Plugins
from tokred.core import registry
from tokred.tables.render import Table, check_format
from tokred.utils.text import spaced

HEADERS = ("Method", "What it does", "Groups", "Site", "Layers", "Knob", "Source")


def methods(plugins: Plugins = None, form: Format = "table") -> None:
    """List all methods: what they do, groups for `--methods`, site, default layers and knob."""
    check_format(form)
    load(plugins)
    records = [_record(entry) for entry in registry.catalog().values()]
    table = Table(
        headers=HEADERS,
        rows=[tuple(record.values()) for record in records],
        words=frozenset(range(len(HEADERS))),
    )
    show_records(table, records, form)


def _record(entry: registry.Entry) -> dict[str, Any]:
    layers, error = entry.facts.get("stages", (4, 7, 10)), registry.error_of(entry.name)
    return {
        "method": entry.name,
        "summary": error or entry.summary + (" (control)" if entry.facts.get("control") else ""),
        "groups": ", ".join(entry.groups),
        "site": entry.facts.get("site", "mid"),
        "stages": layers if isinstance(layers, str) else spaced(layers),
        "knob": entry.facts.get("knob", "rate"),
        "source": entry.paper,
    }
