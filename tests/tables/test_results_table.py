"""The results table: cells, notes and marks, and its forms."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from tokred.tables.render import Table
from tokred.tables.results_table import formatted, results_table, row_notes, run_notes, sweep_table
from tokred.tables.row import BASELINE, COLUMNS, Row, from_csv

COMMON = {"training": "none", "n_images": 200, "precision": "float32", "img_size": 224}
METHOD = {**COMMON, "budget": 0.3, "protocol": "native"}


def measured(method, top1, drop, **cells):
    limits = {"drop": drop, "drop_lo": drop - 1, "drop_hi": drop + 1}
    limits |= {"nll_rise": drop / 100, "nll_rise_lo": drop / 100 - 0.03, "nll_rise_hi": drop / 100 + 0.02}
    return Row(method, **{**METHOD, "top1": top1, "gflops": 0.88, "reduction": 0.3003, **limits, **cells})


ROWS = [
    Row(BASELINE, **COMMON, top1=91.0, gflops=1.258, reduction=0.0, drop=0.0),
    measured("lotm", 90.5, 0.5, options="order=append metric=x", best=True),
    measured("tome", 90.0, 1.0, options="metric=keys", unbeaten="random lowres"),
    measured("patchmerger", 89.0, 2.0, training="reducer", unbeaten="random lowres"),
    measured("lowres", 88.0, -13.0, control=True, reduction=0.3561, options="size=176x192"),
    measured("random", 60.0, 76.56, control=True),
    Row("sinkhorn", **METHOD, gflops=0.88, reduction=0.3004, status="failed", error="no memory"),
]
DEFAULTS = {"lotm": "order=inplace metric=x", "tome": "metric=keys", "patchmerger": "", "random": ""}


def printed(table, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(table.render())
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_terminal_shows_a_row_a_line_at_80_columns():
    timed = [measured("dynamicvit", 65.62, 76.56, speedup=31.25, drop_lo=-65.62, drop_hi=85.94)]
    for rows in (ROWS, [*ROWS, *timed]):
        lines = printed(results_table(rows, "t", DEFAULTS), 80)
        assert max(map(len, lines)) <= 80
        for row in rows:
            (line,) = (line for line in lines if line.startswith(row.method + " "))
            assert row.status != "ok" or f"{row.top1:.2f}" in line
        text = "\n".join(lines)
        assert "0.50 [-0.50, 1.50]  +0.005 ±0.030   0.880" in text
        assert "Reduction" not in text
        assert ("31.25" in text) == (rows is not ROWS)


def test_notes_stand_once_below_and_their_rows_have_the_number():
    lines = printed(results_table(ROWS, "t", DEFAULTS), 80)
    notes = dict(line.split(" ", 1) for line in lines if line[:1] in "¹²³⁴⁵⁶⁷⁸⁹")
    assert notes == {
        "¹": "with order=append",
        "²": "not significantly better than random, lowres",
        "³": "own parameters trained",
        "⁴": "control",
        "⁵": "with size=176x192",
        "⁶": "saves 5.61 points more than asked",
        "⁷": "failed: no memory",
    }
    marks = {line.split("  ")[0].strip() for line in lines}
    assert {"lotm ¹", "tome ²", "patchmerger ²³", "lowres ⁴⁵⁶", "random ⁴", "sinkhorn ⁷", BASELINE} <= marks
    assert lines[-1] == "200 images, float32, 224 pixels, native stages."


def test_markdown_and_latex_have_the_same_cells_and_notes():
    table = results_table(ROWS, "A title", DEFAULTS)
    markdown, latex = table.render("markdown"), table.render("latex")
    assert markdown.startswith("**A title**\n\n| Method | Top-1 |")
    assert (
        "| lowres <sup>4,5,6</sup> | 88.00 | -13.00 \\[-14.00, -12.00\\] | -0.130 ±0.030 | 0.880 |"
        in markdown
    )
    assert "| lotm <sup>1</sup> | **90.50** |" in markdown
    assert "<sup>6</sup> saves 5.61 points more than asked" in markdown
    assert r"lowres\textsuperscript{4,5,6} & 88.00 & $-13.00$ {[}$-14.00$, $-12.00${]} & $-0.130$" in latex
    assert r"\textsuperscript{6}~saves 5.61 points more than asked" in latex
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(ROWS)
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(table.headers) - 1 for line in body)


def test_csv_and_json_have_all_columns_and_raw_numbers():
    assert [row.reduction for row in from_csv(formatted(ROWS, "t", "csv"))] == [row.reduction for row in ROWS]
    objects = json.loads(formatted(ROWS, "t", "json"))
    assert [set(row) for row in objects] == [set(COLUMNS)] * len(ROWS)
    assert objects[4]["reduction"] == 0.3561


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        ({"reduction": 0.304}, "saves 0.40 points more than asked"),
        ({"reduction": 0.2}, "saves 10.00 points less than asked"),
        ({"control": True}, "control"),
        ({"status": "failed", "error": "100 %"}, "failed: 100 %"),
        ({"status": "unfitted", "error": "run fit"}, "run fit"),
        ({"limited": True, "n_images": 7}, "first 7 images only"),
        ({"limited": True, "n_images": 1}, "first image only"),
        ({"n_failed": 2, "on_error": "skip", "n_images": 9}, "2 images unreadable, left out"),
        ({"smallest_batch": 2, "n_images": 9}, "batches of 2 for lack of memory"),
        ({"unfitted": True, "training": "reducer"}, "unfitted: random parameters, no result"),
        ({"training": "full"}, "all weights trained"),
        ({"budget": None, "control": True, "reduction": 0.7}, "saves 70.00 %"),
    ],
)
def test_what_a_single_row_says(cells, note):
    row = Row("x", **{"budget": 0.3, "reduction": 0.3005, **cells})
    assert [text for text in row_notes(row) if note == "control" or text != "control"] == [note]
    if "n_images" in cells:  # which holds for all rows, and then stands in the run's note alone
        assert row_notes(row, [row, row]) == []
        assert note.lower() in run_notes([row, row])[0].lower()


def test_columns_of_what_was_measured_and_is_not_the_same_for_all():
    older = [replace(row, nll_rise=None) for row in ROWS]
    assert results_table(older).headers == ("Method", "Top-1", "Drop [95 % interval]", "GFLOPs")
    for budget in (0.5, None):  # another budget, and a plan at a knob
        table = results_table([*ROWS, replace(ROWS[1], budget=budget, speedup=1.25)])
        names = ("Method", "Top-1", "Drop [95 % interval]", "NLL rise", "GFLOPs", "Reduction", "Speed-up")
        assert table.headers == names
        cells = ["lotm", "90.50", "0.50 [-0.50, 1.50]", "+0.005 ±0.030", "0.880", "30.03 %", "1.25"]
        assert table.rows[-1] == cells
    assert results_table(ROWS).rows[0] == [BASELINE, "91.00", "", "", "1.258"]


def test_options_are_noted_where_they_are_not_the_default():
    row = Row("m", options="a=1 b=2")
    assert row_notes(row) == []
    assert row_notes(row, defaults={"m": "a=1 b=2"}) == []
    assert row_notes(row, defaults={"m": "a=1 b=3"}) == ["with b=2"]
    assert row_notes(row, defaults={}) == ["with a=1 b=2"]  # those of a method that nothing is known of


def test_a_sweep_has_a_column_for_each_budget():
    rows = [
        Row(BASELINE, top1=91.0),
        measured("lotm", 90.0, 1.0, budget=0.2, reduction=0.2),
        measured("lotm", 85.0, 6.0, budget=0.4, reduction=0.4, best=True),
        measured("tome", 80.0, 11.0, budget=0.4, reduction=0.45),
    ]
    table = sweep_table(rows)
    assert table.headers == ("Top-1 (%) at a reduction of", "20 %", "40 %")
    assert table.rows == [
        [BASELINE, "91.00", "91.00"],
        ["lotm", "90.00", "85.00"],
        ["tome", "-", "80.00 (at 45.0 %)"],
    ]
    assert table.bold == {(1, 2)}


def test_a_table_that_has_no_title_notes_or_header_line():
    assert printed(Table(headers=("", ""), rows=[("a", "1")]), 20) == ["a  1"]


def test_no_header_number_or_name_is_broken_at_80_columns():
    headers = ("Method", "Knob", "Stages", "Tokens", "FLOPs (G)", "Reducers (G)", "Reduction")
    many = " ".join(["9"] * 12)
    cells = ("patchmerger", f"removed {many}", many, " ".join(["150"] * 12), "3.2257", "0.0285", "30.003%")
    lines = printed(Table(headers=headers, rows=[cells], words=frozenset((0, 1, 2, 3))), 80)
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    assert {*" ".join((*headers, *cells)).split()} <= set(words)


@pytest.mark.parametrize("width", [60, 72, 80])
def test_long_words_are_folded_where_columns_would_be_cut_off(width):
    reason = "timm's vision_transformer_hybrid is not a standard VisionTransformer."
    cells = ("vit_tiny_patch16_dinov3_qkvb", "alias", "196", "1.26", reason)
    table = Table(
        headers=("Model", "Alias", "Patches", "GFLOPs", "Works"), rows=[cells], words=frozenset((0, 1, 4))
    )
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    starts = [lines[0].index(header) for header in ("Model", "Alias", "Works")]
    columns = [
        [line[start:stop] for line in lines[2:]]
        for start, stop in zip(starts, (*starts[1:], None), strict=True)
    ]
    assert "".join("".join(columns[0]).split()) == cells[0]
    assert "".join("".join(columns[2]).split()) == reason.replace(" ", "")
