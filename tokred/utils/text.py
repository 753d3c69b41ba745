"""Foreign text in output: names of files, folders and methods, and the messages of other people's code."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_BREAKS = re.compile("\r\n|[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
# Control, format (bidirectional overrides, zero width), half of a pair, separators.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))

_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {char: "\\" + char for char in "\\|`[]*~"}
_LATEX = {char: "\\" + char for char in "&%_#$"} | {
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "[": "{[}",  # a cell that begins with one would be the optional argument of the line end before it
    "]": "{]}",
    "*": "{*}",  # and this one would be its star
}


def visible(text: str) -> str:
    r"""The text on one line, with nothing in it that a reader cannot see.

    Line breaks and tabs become spaces. Other control and format characters, such as the escape that begins
    a terminal's commands or the override that turns the reading direction, and bytes of a file name that
    are no text, are written as Python writes them: \x1b, \u202e.
    """
    text = _BREAKS.sub(" ", text)
    unseen = {char for char in text if unicodedata.category(char) in _UNSEEN}
    return "".join(char.encode("unicode_escape").decode("ascii") if char in unseen else char for char in text)


def spaced(numbers: Iterable[int]) -> str:
    """Numbers as tables and commands have them: "4 7 10"."""
    return " ".join(map(str, numbers))


def layer_range(layers: str) -> str:
    """Layers as a row has them, "4 7 10"; more than three consecutive ones as "1 to 12"."""
    numbers = [int(layer) for layer in layers.split()]
    consecutive = len(numbers) > 3 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if consecutive else layers


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plain_name(text: str) -> str:
    """The text as part of a file's name: "hf-hub:owner/name" becomes "hf-hub-owner-name"."""
    return re.sub(r"[/\\:]+", "-", visible(text))


def for_markdown(text: str) -> str:
    r"""The text as a cell of a Markdown table, where it formats nothing.

    `<`, `>` and `&` become entities, because not every renderer takes \<; the others get a backslash.
    Underscores within a word stay as they are: CommonMark (6.2) gives them no meaning there, and options
    such as max_iter stay readable in the source.
    """
    text = "".join(_MARKDOWN.get(char, char) for char in visible(text))
    return re.sub("_+", lambda run: run[0] if _within_word(run) else run[0].replace("_", r"\_"), text)


def _within_word(run: re.Match[str]) -> bool:
    before, after = run.string[: run.start()][-1:], run.string[run.end() :][:1]
    return before.isalnum() and after.isalnum()


def for_latex(text: str) -> str:
    """The text as a cell of a LaTeX tabular."""
    return "".join(_LATEX.get(char, char) for char in visible(text))
