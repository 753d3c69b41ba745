"""Figures: one style for files and, in light and dark, for pages.

A module for each kind of figure makes a `Figure`; `svg` and `png` turn it into a file, and `inline` into a
part of a page that has the page's colours.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for colour-blind readers; methods also have markers of their own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a6fdf", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
INK = "#1d2021"  # the colour of text and axes; in a page it becomes the text colour

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tokred",  # the same figure is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


def figure(width: float, height: float) -> Figure:
    """An empty figure, width and height in inches, outside pyplot's state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        return Figure((width, height), layout="constrained")


def style() -> AbstractContextManager[None]:
    """The context in which axes are added and drawn to."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def svg(drawn: Figure) -> str:
    """The figure as an SVG file."""
    return _svg(drawn, transparent=False)


def png(drawn: Figure, dpi: int = 160) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with style(), any_script():
        drawn.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def files(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Each figure as an SVG and a PNG file, by the names of the files."""
    return {
        **{f"{name}.svg": svg(drawn).encode() for name, drawn in figures.items()},
        **{f"{name}.png": png(drawn) for name, drawn in figures.items()},
    }


def inline(drawn: Figure, name: str = "figure") -> str:
    """The figure as an `<svg>` element without a background, in the page's text colour.

    Its colours are the CSS variables --plot-0 and so on where the page defines them.

    Args:
        drawn: the figure.
        name: the prefix of all ids in it; each figure of a page needs its own.
    """
    text = _svg(drawn, transparent=True)
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', element))
    element = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", element
    )
    element = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", element)
    for index, colour in enumerate(COLOURS):
        element = element.replace(colour, f"var(--plot-{index}, {colour})")
    return element.replace(INK, "currentColor")


@contextmanager
def any_script() -> Iterator[None]:
    """Silence warnings about scripts that matplotlib's font lacks; a box stands for such characters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _svg(drawn: Figure, transparent: bool) -> str:
    buffer = io.StringIO()
    with style(), any_script():
        drawn.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
