"""Foreign text in tables and reports: it is shown, and does nothing else."""

import io
import re
import unicodedata
from functools import cache

import pytest
from helpers.hostile import HOSTILE, Page
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from tokred.evaluation.run_folder import Run
from tokred.report.page import page
from tokred.tables.results_table import results_table
from tokred.tables.row import Row
from tokred.utils.text import for_latex, for_markdown, visible

ANY = st.text(st.characters(exclude_categories=()), max_size=40) | st.text(
    "\\|<>&`[]()*_~!ab \n\u202e", max_size=20
)


def hostile(test):
    for text in HOSTILE:
        test = example(text=text)(test)
    return test


def test_visible():
    assert visible("plain ü 漢字 max_iter=3") == "plain ü 漢字 max_iter=3"
    assert visible("a\r\nb\nc\td\u2028e") == "a b c d e"
    assert visible("\x1b[31m\x00\x7f") == r"\x1b[31m\x00\x7f"
    assert visible("a\u202eb\u200bc\udcff") == r"a\u202eb\u200bc\udcff"


@given(text=ANY)
@hostile
def test_visible_text_is_one_line_of_printable_characters(text):
    assert not {unicodedata.category(char) for char in visible(text)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(visible(text).splitlines() or [""]) == 1
    visible(text).encode()  # it can be written
    assert visible(visible(text)) == visible(text)


def test_markdown_cells_read_well():
    assert for_markdown("order=inplace max_iter=3 a__b metric=x") == "order=inplace max_iter=3 a__b metric=x"
    assert for_markdown("_private x_ a_|b") == r"\_private x\_ a\_\|b"
    assert for_markdown("<b>&") == "&lt;b&gt;&amp;"


@given(text=ANY)
@hostile
def test_a_markdown_cell_shows_the_text_and_formats_nothing(text):
    table = f"| a | b |\n| --- | --- |\n| {for_markdown(text)} | end |\n"
    page = Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(table))
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags.count("td") == 2
    cells = [part for part in "".join(page.data).split("\n") if part]
    shown = [visible(text).strip(" ")] if visible(text).strip(" ") else []
    assert [cell.strip() for cell in cells] == [
        "a",
        "b",
        *(cell.strip() for cell in shown if cell.strip()),
        "end",
    ]


@cache
def plain_report():
    row = Row("lotm", model="x", dataset="x", options="x", status="failed", error="x", weights="x")
    shown = Page(page(Run([row], {"configuration": {}, "x": ["x"]})))
    return shown.tags, shown.attributes


@pytest.mark.slow
@given(text=ANY)
@hostile
def test_a_report_holds_the_text_and_no_tag_of_it(text):
    row = Row("lotm", model=text, dataset=text, options=text, status="failed", error=text, weights=text)
    shown = Page(page(Run([row], {"configuration": {}, text: [text]})))
    if visible(text).strip():  # without a word there is no line for it
        assert (shown.tags, shown.attributes) == plain_report()
    assert "".join(shown.data).count(visible(text)) >= 5


@pytest.mark.parametrize("text", HOSTILE)
def test_a_markdown_table_keeps_its_columns(text):
    row = Row(text, options=text, training=text, status="failed", error=text)
    page = Page(
        MarkdownIt("commonmark").enable("table").render(results_table([row, Row("lotm")]).render("markdown"))
    )
    assert page.tags.count("td") == 2 * len(results_table([row]).headers)
    assert page.tags.count("tr") == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_the_text_and_obeys_nothing(text):
    stream = io.StringIO()
    console = Console(file=stream, width=1000, force_terminal=True, color_system=None, emoji=True)
    console.print(results_table([Row("lotm", options=text, status="failed", error="e")], text, {}).render())
    printed = re.sub(r"\x1b\[\d*m", "", stream.getvalue())  # rich's own bold and italics
    assert "\x1b" not in printed
    # In the title, which is wrapped at the table's width, and in a cell.
    assert "".join(printed.split()).count("".join(visible(text).split())) == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_a_latex_row_is_one_line_without_commands_of_the_text(text):
    row = Row(text, options=text, status="failed", error=text)
    table = results_table([row], defaults={})
    body = table.render("latex").splitlines()
    assert len(body) == 10
    line = body[5]
    assert len(re.findall(r"(?<!\\)&", line)) == len(table.headers) - 1
    assert set(re.findall(r"\\[a-z]+", line)) <= {
        r"\textbackslash",
        r"\textasciitilde",
        r"\textasciicircum",
        r"\textsuperscript",
    }
    assert not line.startswith(("[", "*"))  # after a line end, LaTeX would take them for its arguments
    assert re.search(r"(?<!\\)[%$#^~_]", line) is None


def test_latex_text():
    assert for_latex("50 %\n[x]_*\\") == r"50 \% {[}x{]}\_{*}\textbackslash{}"
    assert "\na " in results_table([Row("a")]).render("latex")
