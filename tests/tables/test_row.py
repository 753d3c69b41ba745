"""What a run leaves behind."""

import re
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokred.errors import TokredError
from tokred.tables.row import BASELINE, COLUMNS, SCHEMA, Row, from_csv, rank, to_csv

DESIGN_COLUMNS = """
method options control model dataset split n_images n_failed limited budget reduction gflops reducer_gflops
protocol stages tokens knob top1 top1_lo top1_hi top5 drop drop_lo drop_hi p_value agreement kl images_per_s
latency_ms speedup promise_share peak_mem_mb training images_seen weights weights_hash data_hash img_size
crop_pct interpolation precision device batch_size seed status error tokred torch timm fvcore commit date
""".split()

ROWS = [
    Row(
        "lotm",
        budget=0.3,
        reduction=0.3005,
        gflops=3.22,
        top1=80.0,
        drop=2.0,
        drop_lo=1.0,
        drop_hi=3.0,
        training="none",
        stages="4 7 11",
    ),
    Row(BASELINE, gflops=4.6, top1=82.0, reduction=0.0, training="none"),
    Row(
        "tome",
        budget=0.3,
        reduction=0.3001,
        gflops=3.2,
        top1=81.0,
        drop=1.0,
        drop_lo=0.5,
        drop_hi=1.5,
        training="none",
    ),
    Row("a|b", status="failed", error="100 % <b>broken</b> & so_on", control=True),
    Row(
        "evit",
        budget=0.3,
        reduction=0.3005,
        gflops=3.22,
        top1=80.0,
        drop=2.0,
        drop_lo=1.0,
        drop_hi=3.0,
        training="none",
        limited=True,
        n_images=7,
    ),
]


def test_columns_are_fixed():
    appended = ["adapter", "unfitted", "fitted_here", "schema", "on_error", "smallest_batch"]
    appended += ["published_top1", "baseline_off", "unbeaten", "best", "agreement_lo", "agreement_hi"]
    appended += ["nll", "nll_rise", "nll_rise_lo", "nll_rise_hi", "gflops_lo", "gflops_hi", "gflops_sd"]
    features = ("feature_cosine", "feature_error", "patch_cosine", "patch_error")
    features += ("knn_agreement", "knn_top1", "knn_drop")
    appended += [f"{name}{end}" for name in features for end in ("", "_lo", "_hi")]
    appended += ["schedule"]
    assert list(COLUMNS) == DESIGN_COLUMNS + appended  # only ever appended


def test_rank():
    assert [row.method for row in rank(ROWS)] == [BASELINE, "tome", "evit", "lotm", "a|b"]


def test_csv_round_trip(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(to_csv(ROWS))
    table = pd.read_csv(path)
    assert list(table.columns) == list(COLUMNS)
    assert table.top1.tolist()[:3] == [80.0, 82.0, 81.0]
    assert np.isnan(table.latency_ms).all()  # an empty cell is "not measured"
    assert table.control.tolist() == [False, False, False, True, False]
    assert table.stages[0] == "4 7 11"
    assert table.error[3] == ROWS[3].error
    assert (table.schema == SCHEMA).all()


VALUES = {
    "str": st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), max_size=8),
    "bool": st.booleans(),
    "int": st.integers(1, SCHEMA),
    "int | None": st.none() | st.integers(-(10**12), 10**12),
    "float | None": st.none() | st.floats(allow_nan=False, width=32),
}


@given(st.lists(st.builds(Row, **{field.name: VALUES[field.type] for field in fields(Row)}), max_size=3))
def test_rows_come_back_from_csv_with_their_types(rows):
    again = from_csv(to_csv(rows))
    assert to_csv(again) == to_csv(rows)
    for before, after in zip(rows, again, strict=True):
        for name in COLUMNS:
            value = getattr(before, name)
            assert type(getattr(after, name)) is type(value)
            assert getattr(after, name) == (float(f"{value:.12g}") if isinstance(value, float) else value)


def test_a_leaderboard_of_an_older_tokred_is_read_with_defaults():
    first = DESIGN_COLUMNS  # what the first ones had
    (row,) = from_csv(
        ",".join(first)
        + "\n"
        + ",".join({"method": "lotm", "top1": "80.5", "control": "false"}.get(n, "") for n in first)
        + "\n"
    )
    assert (row.method, row.top1, row.control, row.unfitted, row.gflops, row.n_images) == (
        "lotm",
        80.5,
        False,
        False,
        None,
        None,
    )


def leaderboard(**cells):
    return ",".join(COLUMNS) + "\n" + ",".join(cells.get(name, "") for name in COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "This file is empty"),
        ("a,b\n1,2\n", "no leaderboard of tokred: column 'a' is not tokred's"),
        ("top1\n1\n", "no leaderboard of tokred: column 'top1'"),
        ("method\nlotm\n", "no leaderboard of tokred: columns are missing"),
        (",".join(COLUMNS) + "\nlotm\n", f"row 1 has 1 cells for {len(COLUMNS)} columns"),
        (",".join(COLUMNS) + ",joy\n", "written by a newer tokred: this one does not know its column 'joy'"),
        (leaderboard(schema=str(SCHEMA + 1)), f"a row of schema '{SCHEMA + 1}'"),
        (leaderboard(method="lotm", top1="x"), "top1 holds 'x', expected a number"),
        (leaderboard(method="lotm", n_images="1.5"), "n_images holds '1.5', expected a whole number"),
        (leaderboard(method="lotm", control="maybe"), "control holds 'maybe', expected true or false"),
        ('method\n"lotm\n', "no leaderboard"),
    ],
)
def test_what_is_no_leaderboard_is_one_sentence(text, part):
    with pytest.raises(TokredError, match=re.escape(part)):
        from_csv(text)
