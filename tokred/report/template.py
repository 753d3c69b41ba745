"""Self-contained pages, which include their styles and scripts and request nothing from other hosts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tokred.utils.text import visible

ASSETS = Path(__file__).parent / "assets"


def render(template: Path, styles: Sequence[Path], scripts: Sequence[Path], **content: Any) -> str:
    """Render a page as HTML. Its content security policy allows only these scripts, by their hash.

    Args:
        template: file of a Jinja template with the variables `style`, `script` and `script_hash`.
        styles: CSS files.
        scripts: JavaScript files.
        content: other variables of the template. Text is escaped, and invisible characters in it are shown.
    """
    style, script = (
        "".join(file.read_text(encoding="utf-8") for file in files) for files in (styles, scripts)
    )
    page: str = _template(template).render(
        **content,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page


@cache
def _template(file: Path) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(file.parent, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # markup stays as it is
    )
    return environment.get_template(file.name)
