"""The tables of a page: rows, sweeps, and bars of intervals."""

import re
from dataclasses import replace

import pytest
from helpers.pages import Reader, check_self_contained, html, material
from helpers.reports import change, made_up
from hypothesis import given
from hypothesis import strategies as st

from tokred.report import main_table
from tokred.report.run_data import RunData
from tokred.tables import results_table
from tokred.tables.row import BASELINE, Row


def test_the_table_shows_the_rows():
    rows, arrays = made_up()
    change(rows, 1, best=True)
    failed = Row("sit", status="unfitted", error="sit is not fitted; run tokred fit sit", budget=0.3)
    text = html(material([*rows, failed], arrays))
    lines = Reader(text).table
    head, body = lines[0], lines[1 : 2 + len(rows)]
    assert head == ["Method", "Top-1", "Drop [95 % interval]", "NLL rise", "GFLOPs", "Speed-up"]
    assert [line[0].split()[0] for line in body] == [row.method for row in [*rows, failed]]
    assert [line[1] for line in body] == [f"{row.top1:.2f}" for row in rows] + [""]
    assert body[1][0].split() == [rows[1].method, "best", "1"]
    assert "control" in next(line[0] for line in body if line[0].startswith("random"))
    assert "not fitted" in body[-1][0]
    drop = f"{rows[1].drop:.2f} [{rows[1].drop_lo:.2f}, {rows[1].drop_hi:.2f}]"
    assert drop.replace("-", "\u2212") in body[1][2]
    numbers = re.findall(r'<li id="note-(\d+)">([^<]*)</li>', text)
    assert [number for number, _ in numbers] == [str(k + 1) for k in range(len(numbers))]
    assert dict(numbers)[body[-1][0][-1]] == "sit is not fitted; run tokred fit sit"
    assert "control" not in dict(numbers).values()  # a badge says so


def test_what_nobody_measured_has_no_column_and_no_plot():
    slow = material(speed=False)
    assert {"Speed-up", "Budget"}.isdisjoint(name for name, _ in main_table.page_table(slow).headers)
    page = html(slow)
    assert "Accuracy against FLOPs" in page
    assert "Accuracy against measured speed" not in page
    assert "Accuracy against measured speed" in html(material())


def test_a_sweep_has_a_table_by_budget_and_names_rows_by_it():
    swept = material(budgets=(0.2, 0.4))
    pivot = main_table.pivot(swept)
    assert pivot.budgets == ["20 %", "40 %"]
    by_hand = {(row.method, row.budget): f"{row.top1:.2f}" for row in swept.rows}
    for method, control, cells in pivot.lines:
        budgets = (None, None) if method == BASELINE else (0.2, 0.4)
        assert [cell.text for cell in cells] == [by_hand[method, budget] for budget in budgets]
        assert control == (method == "random")
    page = html(swept)
    check_self_contained(page)
    assert "lotm, 40 %" in page
    first, last = (
        max((row for row in swept.rows if row.budget == budget and not row.control), key=lambda row: row.top1)
        for budget in (0.2, 0.4)
    )
    assert f"At 20\u00a0% fewer FLOPs {first.method} loses least, a drop of" in page
    assert f"at 40\u00a0% fewer FLOPs {last.method} loses least, a drop of" in page


def test_a_sweep_says_in_each_cell_what_it_is():
    rows, arrays = made_up(budgets=(0.2, 0.4), methods=("lotm", "sit", "lowres"))
    change(rows, None, limited=True, n_images=40)
    change(rows, "sit", unfitted=True)
    change(
        rows,
        next(i for i, row in enumerate(rows) if (row.method, row.budget) == ("lowres", 0.2)),
        reduction=0.25,
    )
    rows += [Row("smaller", control=True, top1=80.0), Row("lotm", knob="40", top1=1.0)]
    pivot = {
        method: [cell.text for cell in cells]
        for method, _, cells in main_table.pivot(material(rows, arrays)).lines
    }
    terminal = results_table.sweep_table(rows)
    shown = {line[0]: list(line[1:]) for line in terminal.rows}
    assert pivot == shown
    assert shown["smaller"] == ["80.00", "80.00"]
    assert all(text.endswith(" (random parameters)") for text in shown["sit"])
    assert shown["lowres"][0].endswith(" (at 25.0 %)")
    assert "1.00" not in shown["lotm"]
    assert terminal.notes == ["First 40 images only."]


def test_intervals_far_beyond_all_others_are_arrows():
    rows = [
        Row(f"m{k}", drop=d, drop_lo=d - 1, drop_hi=d + 1) for k, d in enumerate((0.0, 1.0, 2.0, 3.0, 80.0))
    ]
    rows = [replace(row, top1=90.0 - row.drop) for row in rows]
    bars = [line.cells[2].bar for line in main_table.page_table(RunData(rows, {})).lines]
    assert [bar["beyond"] for bar in bars] == [False] * 4 + [True]
    for bar in bars[:4]:
        assert 0 <= bar["lo"] < bar["at"] < bar["hi"] <= 100
    assert all(bar["zero"] == bars[0]["zero"] for bar in bars)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_have_a_true_minus_and_no_negative_zero(value):
    text = main_table.signed(value)
    assert "-" not in text
    assert text not in ("\u22120.00", "")
    assert float(text.replace("\u2212", "-")) == pytest.approx(value, abs=0.0051)
