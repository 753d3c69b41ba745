"""`methods`: the registered methods."""

from __future__ import annotations

from typing import Any

from tokred.commands.console import show_records
from tokred.commands.groups import load
from tokred.commands.options import Format, Plugins
from tokred.core import registry
from tokred.core.entries import Entry
from tokred.tables.render import Table, check_format
from tokred.utils.text import spaced

HEADERS = ("Method", "What it does", "Layers", "Knob", "Source")


def methods(plugins: Plugins = None, form: Format = "table") -> None:
    """List all methods: what they do, default layers, knob, source, and groups for `--methods`."""
    check_format(form)
    load(plugins)
    entries = registry.catalog().values()
    records = [_record(entry) for entry in entries]
    columns = ("method", "summary", "stages", "knob", "source")
    groups = dict.fromkeys(group for entry in entries for group in entry.groups)
    table = Table(
        headers=HEADERS,
        rows=[[record[column] for column in columns] for record in records],
        words=frozenset(range(len(HEADERS))),
        notes=[
            f"--methods {group}: {', '.join(entry.name for entry in entries if group in entry.groups)}"
            for group in groups
        ],
    )
    show_records(table, records, form)


def _record(entry: Entry) -> dict[str, Any]:
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
