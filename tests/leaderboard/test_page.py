"""Boards as they are read: ranks, exclusions, evidence, and the pages."""

import csv
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.boards import folder, outcome, row
from helpers.command import run

from tokred.evaluation import significance
from tokred.evaluation.metrics import score
from tokred.evaluation.run_folder import read_run
from tokred.leaderboard import Change, add, read
from tokred.leaderboard.evidence import Evidence, claims, evidence_of
from tokred.leaderboard.evidence_store import Store
from tokred.leaderboard.export import TIMM_BENCHMARK, TIMM_RESULTS
from tokred.leaderboard.ranking_groups import load, settings
from tokred.tables.row import BASELINE, COLUMNS

GOOD = {"lotm": outcome(185), "tome": outcome(184, first=3), "topk": outcome(150), "random": outcome(120)}
CONTROL = {"random": {"control": True}}


def made(tmp_path, outcomes=GOOD, name="run", rows=CONTROL, **cells):
    return folder(tmp_path / name, outcomes, rows=rows, **cells)


def standings(board):
    """(setting, group, standing) of everything on a board."""
    for setting in settings(load(board)):
        for group in setting.groups:
            yield from ((setting, group, standing) for standing in (*group.ranked, *group.apart))


def by_method(board):
    return {standing.row.method: standing for _, _, standing in standings(board)}


def test_ranks_are_those_of_the_paired_tests(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path))
    found = by_method(board)
    methods = ["lotm", "tome", "topk"]
    expected = significance.ranks([float(GOOD[m].mean()) for m in methods], [GOOD[m] for m in methods])
    assert [found[m].rank for m in methods] == expected == [1, 1, 3]
    assert found["random"].rank is None
    assert not any(standing.unpaired or standing.exclusions for standing in found.values())


def test_images_of_one_source_count_once_on_a_board_too(tmp_path):
    one, other = outcome(180), outcome(170)
    add(tmp_path / "alone.csv", made(tmp_path, {"lotm": one, "tome": other}, "a"))
    grouped = folder(tmp_path / "g", {"lotm": one, "tome": other}, groups=np.arange(200) // 10)
    add(tmp_path / "grouped.csv", grouped)
    assert by_method(tmp_path / "alone.csv")["tome"].rank == 2  # ten images lost and none won
    assert by_method(tmp_path / "grouped.csv")["tome"].rank == 1  # in a single group


def test_without_predictions_intervals_take_their_place(tmp_path):
    source = made(tmp_path, {"lotm": outcome(185), "tome": outcome(175), "topk": outcome(60)})
    paired, alone = tmp_path / "p.csv", tmp_path / "u.csv"
    add(paired, source)
    (source / "predictions.npz").unlink()
    add(alone, source)
    assert not (tmp_path / "u.rows").exists()
    assert {m: s.rank for m, s in by_method(paired).items()} == {"lotm": 1, "tome": 2, "topk": 3}
    assert {m: (s.rank, s.unpaired) for m, s in by_method(alone).items()} == {
        "lotm": (1, True),
        "tome": (1, True),
        "topk": (3, True),
    }


def test_evidence_is_kept_whole_and_small(tmp_path):
    n = 50_000
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 1000, n).astype(np.int32)
    kept = Evidence(
        rng.random(n) < 0.8,
        prediction,
        np.arange(n, dtype=np.int32),
        "hash",
        "lotm",
        {"configuration": {}},
        {"date": "x"},
        (n,),
    )
    data = kept.pack()
    back = Evidence.unpack(data)
    assert len(data) < 100_000  # random predictions, which do not compress; a bit and two bytes each
    assert (back.images, back.name, back.run, back.verified, back.left_out) == (
        "hash",
        "lotm",
        {"configuration": {}},
        {"date": "x"},
        (n,),
    )
    for part in ("correct", "prediction", "groups"):
        assert np.array_equal(getattr(back, part), getattr(kept, part))
    assert back.digest == kept.digest
    assert back.places.tolist() == list(range(n))
    for damaged in (b"", data[:-100], b"PK" + data):
        with pytest.raises(ValueError, match="no outcomes"):
            Evidence.unpack(damaged)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"limited": True, "n_images": 200}, "first 200 images only"),
        ({"unfitted": True}, "random parameters, not fitted"),
        ({"fitted_here": True}, "fitted on or chosen by these images"),
        ({"status": "failed", "error": "no memory", "top1": None}, "failed: no memory"),
        ({"status": "unfitted", "error": "run fit", "top1": None}, "not fitted"),
        ({"data_hash": "other"}, "other images than the other rows"),
        ({"reduction": 0.25}, "saves 25.00 % of the FLOPs, less than its budget of 30 %"),
        ({"budget": None}, "its plan was set by hand, at no budget"),
        ({"top1": float("nan")}, "top-1 is"),
        ({"top1": 99.5}, "top1 99.5 instead of 92 by its predictions"),
    ],
)
def test_what_is_marked_is_never_ranked(tmp_path, cells, reason):
    board = tmp_path / "b.csv"
    source = made(tmp_path, rows={**CONTROL, "tome": cells})
    change = add(board, source)
    found = by_method(board)
    assert found["tome"].rank is None
    assert any(reason in mark for mark in found["tome"].exclusions)
    assert found["lotm"].rank == 1
    assert found["topk"].rank == 2  # as if it were not there
    assert len(change.remarks) == 1
    for remark in change.remarks:
        assert remark.startswith("1 row is excluded from the ranking: tome (")
        assert "\n" not in remark


def test_a_baseline_that_is_off_marks_all_that_was_reduced_from_it(tmp_path):
    add(tmp_path / "b.csv", made(tmp_path, rows={BASELINE: {"baseline_off": True}}))
    for standing in by_method(tmp_path / "b.csv").values():
        assert standing.rank is None
        assert standing.exclusions == ["the baseline's top-1 is not the published one of these weights"]


@pytest.mark.parametrize(
    "cells",
    [
        {"model": "deit_b"},
        {"weights_hash": "v"},
        {"dataset": "x"},
        {"split": "val"},
        {"budget": 0.5, "reduction": 0.5},
        {"training": "full"},
        {"img_size": 384},
        {"crop_pct": 1.0},
        {"interpolation": "bilinear"},
        {"precision": "bfloat16"},
        {"on_error": "skip"},
    ],
)
def test_what_does_not_compare_is_ranked_apart(tmp_path, cells):
    board = tmp_path / "b.csv"
    add(
        board,
        made(tmp_path, {"lotm": outcome(185)}),
        made(tmp_path, {"tome": outcome(100)}, "other", **cells),
    )
    assert {standing.row.method: standing.rank for _, _, standing in standings(board)} == {
        "lotm": 1,
        "tome": 1,
    }
    assert len({(id(group)) for _, group, _ in standings(board)}) == 2


def test_the_limited_stand_beside_those_they_would_compare_with(tmp_path):
    board = tmp_path / "b.csv"
    add(
        board,
        made(tmp_path),
        folder(tmp_path / "lim", {BASELINE: outcome(12, 12), "evit": outcome(12, 12)}, limited=True),
    )
    (setting,) = settings(load(board))
    assert [standing.row.method for standing in setting.groups[0].apart] == ["evit"]
    assert [standing.row.limited for standing in (*setting.baselines, *setting.apart)] == [False, True]


def test_controls_are_in_every_kind_of_training_and_unbeaten_ones_are_said(tmp_path):
    board = tmp_path / "b.csv"
    rows = {**CONTROL, "sit": {"training": "reducer", "unbeaten": "smaller"}, "poor": {}}
    add(
        board,
        made(
            tmp_path,
            {"lotm": outcome(185), "sit": outcome(184), "poor": outcome(119), "random": outcome(120)},
            rows=rows,
        ),
    )
    groups = {group.training: {s.row.method: s for s in group.ranked} for _, group, _ in standings(board)}
    assert set(groups["none"]) == {"lotm", "poor", "random"}
    assert set(groups["reducer"]) == {"sit", "random"}
    assert groups["none"]["lotm"].unbeaten == []
    assert groups["none"]["poor"].unbeaten == ["random"]
    assert groups["reducer"]["sit"].unbeaten == [
        "smaller"
    ]  # which is not on this board: what the run found holds


def test_a_control_without_a_budget_is_in_all_groups(tmp_path):
    board = tmp_path / "b.csv"
    smaller = {"control": True, "budget": None, "reduction": 0.7}
    rows = {"smaller": smaller, "sit": {"training": "reducer"}, "tome": {"budget": 0.5, "reduction": 0.5}}
    add(
        board,
        made(
            tmp_path,
            {"lotm": outcome(185), "sit": outcome(184), "tome": outcome(140), "smaller": outcome(160)},
            rows=rows,
        ),
    )
    groups = [{s.row.method: s for s in group.ranked} for group in settings(load(board))[0].groups]
    assert [set(group) for group in groups] == [{"lotm", "smaller"}, {"sit", "smaller"}, {"tome", "smaller"}]
    assert groups[0]["lotm"].unbeaten == []
    assert groups[2]["tome"].unbeaten == ["smaller"]
    assert not any(group["smaller"].exclusions or group["smaller"].rank for group in groups)


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ({"budget": 0.3}, "topk"),
        ({"budget": 0.30000000000000004}, "topk@0.30000000000000004"),
        ({"budget": 0.3}, "topk@0.3"),
        ({"budget": None, "knob": "0.7"}, "topk@0.7"),
        ({"budget": None, "knob": "16", "stages": "4 7"}, "topk@16@4 7"),
    ],
)
def test_outcomes_are_found_under_the_names_that_runs_give_them(tmp_path, cells, name):
    source = folder(tmp_path / "r", {name: outcome(150)})
    run_ = read_run(source)
    assert evidence_of(run_, row("topk", outcome(150), **cells)).top1 == 75
    assert evidence_of(run_, row("topk", budget=None, knob="9")) is None  # at another knob: not these


def test_rows_without_labels_are_marked_and_not_disputed(tmp_path):
    board = tmp_path / "b.csv"
    nothing = {"top1": None, "top1_lo": None, "top1_hi": None}
    add(board, made(tmp_path, {"lotm": outcome(185)}, rows={"lotm": nothing, BASELINE: nothing}))
    assert by_method(board)["lotm"].exclusions == ["no labels, so no top-1"]


def test_the_order_of_runs_changes_nothing(tmp_path):
    sources = [made(tmp_path, {m: correct}, m, rows=CONTROL) for m, correct in GOOD.items()]
    pages = set()
    for seed in range(4):
        board = tmp_path / f"{seed}" / "b.csv"
        for source in random.Random(seed).sample(sources, len(sources)):
            add(board, source)
        assert run("leaderboard", "build", "--board", board)[0] == 0
        pages.add(((board.with_suffix(".html")).read_bytes(), (board.with_suffix(".md")).read_bytes()))
    assert len(pages) == 1


def test_a_renewed_row_takes_its_evidence_along(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path, {"lotm": outcome(185)}))
    add(board, made(tmp_path, {"lotm": outcome(150)}, "newer", date="2026-02-02"))
    assert len(list((tmp_path / "b.rows").iterdir())) == 2  # baseline and lotm
    assert by_method(board)["lotm"].evidence.top1 == 75
    bare = made(tmp_path, {"lotm": outcome(140)}, "bare", date="2026-03-03")
    (bare / "predictions.npz").unlink()
    change = add(board, bare)  # which does not replace what has evidence
    assert (change.kept, change.replaced) == (2, 0)
    assert (
        change.remarks[1]
        == "A row of lotm without predictions is left out: the board has it with predictions."
    )
    standing = by_method(board)["lotm"]
    assert (standing.row.top1, standing.evidence.top1, standing.exclusions) == (75, 75, [])


def test_a_row_without_predictions_that_contradicts_itself_is_refused(tmp_path):
    board, bare = tmp_path / "b.csv", made(tmp_path, rows={"tome": {"top1": 99.9}}, name="forged")
    (bare / "predictions.npz").unlink()
    change = add(board, bare)
    assert "tome" not in by_method(board)
    assert change.kept == 1
    assert change.remarks[0].startswith(
        "A row of tome is refused, because it contradicts itself: top1 is 99.9, outside"
    )
    add(board, bare / "leaderboard.csv", made(tmp_path))  # with its predictions the row itself is honest
    assert by_method(board)["tome"].row.top1 == 92
    text = board.read_text()
    shutil.rmtree(tmp_path / "b.rows")
    board.write_text(text.replace(",92,", ",99.9,"))  # edited by hand
    assert by_method(board)["tome"].exclusions[0].startswith("contradicts itself: top1 is 99.9")
    run("leaderboard", "build", "--board", board)
    assert "no predictions" in board.with_suffix(".md").read_text()


def test_boards_merge_with_their_evidence(tmp_path):
    one, two, both = (tmp_path / name for name in ("one.csv", "two.csv", "both.csv"))
    add(one, made(tmp_path, {"lotm": outcome(185)}, "x"))
    add(two, made(tmp_path, {"tome": outcome(150)}, "y"))
    add(both, one, two)
    assert {m: (s.rank, s.unpaired) for m, s in by_method(both).items()} == {
        "lotm": (1, False),
        "tome": (2, False),
    }


def test_a_forged_run_and_a_forged_board_are_named(tmp_path):
    source, board = made(tmp_path), tmp_path / "b.csv"
    text = (source / "leaderboard.csv").read_text()
    (source / "leaderboard.csv").write_text(text.replace("92.5,", "98.5,"))
    change = add(board, source)
    assert change.remarks == (
        "1 row is excluded from the ranking: lotm (top1 98.5 instead of 92.5 by its predictions).",
    )
    assert by_method(board)["lotm"].rank is None
    honest = tmp_path / "h.csv"
    add(honest, made(tmp_path, name="honest"))
    honest.write_text(honest.read_text().replace("92.5,", "98.5,"))
    assert "top1 98.5 instead of 92.5 by its predictions" in by_method(honest)["lotm"].exclusions
    assert by_method(honest)["tome"].rank == 1


def test_damaged_predictions_and_damaged_evidence(tmp_path):
    source, board = made(tmp_path), tmp_path / "b.csv"
    good = (source / "predictions.npz").read_bytes()
    (source / "predictions.npz").write_bytes(good[:500])
    change = add(board, source)
    assert change == Change(5, 0, 0, 5)
    assert re.match("The rows of .* are added without their predictions: .*is damaged", change.remarks[0])
    (source / "predictions.npz").write_bytes(good)
    add(board, source)
    for file in (tmp_path / "b.rows").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert by_method(board)["lotm"].unpaired


def test_claims_are_those_of_the_scores(tmp_path):
    rng = np.random.default_rng(1)
    source = folder(
        tmp_path / "r",
        {BASELINE: rng.random(200) < 0.9, "lotm": rng.random(200) < 0.8},
        groups=np.arange(200) // 3,
    )
    found = read_run(source)
    parts = found.predictions.models
    scores = score(parts["lotm"], parts[BASELINE], found.predictions.labels, found.predictions.groups)
    columns = ("top1", "top5", "drop", "agreement", "kl", "p_value")
    stated = replace(read(source / "leaderboard.csv")[1], **{name: getattr(scores, name) for name in columns})
    assert claims(found, stated) == []
    for column in columns:
        (wrong,) = claims(found, replace(stated, **{column: 0.123}))
        assert wrong.startswith(f"{column} 0.123 instead of")


WRITER = """
import sys
from pathlib import Path
from tokred import leaderboard
board, *runs = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
while True:
    for run in runs:
        leaderboard.add(board, run)
        assert "torch" not in sys.modules
        print("added", flush=True)
"""


def test_a_killed_writer_leaves_no_row_with_another_ones_evidence(tmp_path):
    board = tmp_path / "b.csv"
    runs = [made(tmp_path, {"lotm": outcome(150 + i), "tome": outcome(120 + i)}, f"r{i}") for i in range(4)]
    draw = random.Random(1)
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, board, *runs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        writer.stdin.write("\n")
        writer.stdin.flush()
        for _ in range(draw.randint(1, 6)):
            assert writer.stdout.readline() == "added\n"
        time.sleep(draw.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        for standing in by_method(board).values():
            assert standing.evidence is not None
            assert not standing.exclusions
    add(board, runs[0])
    assert len(list(Store(board).folder.iterdir())) == 3  # of what was killed nothing stays


def test_two_writers_and_a_reader(tmp_path):
    board = tmp_path / "b.csv"
    runs = [made(tmp_path, {"lotm": outcome(150 + i)}, f"r{i}") for i in range(3)]
    add(board, runs[0])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, board, *order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (runs, runs[::-1])
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
            writer.stdin.write("\n")
            writer.stdin.flush()
        from tokred.leaderboard.publish import ranked_rows as read_all

        seen, deadline = set(), time.monotonic() + 60
        while len(seen) < 4 and time.monotonic() < deadline:
            for standing in read_all(board):
                assert standing.evidence is not None
                assert not standing.exclusions
                seen.add(standing.row.top1)
        assert len(seen) == 4  # the baseline, and all three of LOTM's: they wrote while this read
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


class Page(HTMLParser):
    """What a browser would make of it: texts, tags, and the addresses that it would ask for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("href", "src", "action", "srcset", "data")
        ]

    def handle_data(self, data):
        self.texts.append(data.strip())


HOSTILE = '<img src=x onerror=alert(1)>|`a`\n"b" \u202e'


def test_foreign_text_does_nothing_on_any_page(tmp_path):
    rows = {
        "lotm": {"options": HOSTILE, "status": "failed", "error": HOSTILE, "top1": None},
        "tome": {"options": HOSTILE},
    }
    source = made(tmp_path, rows=rows, model=HOSTILE, dataset=HOSTILE, weights=HOSTILE)
    board = tmp_path / "b.csv"
    code, text = run("leaderboard", "build", source, "--board", board, "--title", HOSTILE)
    assert code == 0
    assert "\u202e" not in text
    html = board.with_suffix(".html").read_text()
    page = Page(html)
    assert page.tags.count("img") == 0
    assert page.tags.count("script") == 1
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html
    markdown = board.with_suffix(".md").read_text()
    assert "<img" not in markdown
    assert "\u202e" not in html + markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 11
    for name in ("latex", "markdown", "csv"):
        code, text = run("leaderboard", "export", board, "--format", name)
        assert code == 0, text


def test_a_page_says_what_is_ranked_and_what_is_not(tmp_path):
    board = tmp_path / "b.csv"
    rows = {**CONTROL, "tome": {"fitted_here": True}}
    code, text = run("leaderboard", "build", made(tmp_path, rows=rows), "--board", board)
    assert code == 0
    assert "2 ranked rows in 1 group that compares; 1 row excluded." in text
    assert "1 row is excluded from the ranking: tome (fitted on or chosen by these images)." in text
    texts = Page(board.with_suffix(".html").read_text()).texts
    for wanted in (
        "deit_s on photodigits test (200 images)",
        "30 % fewer FLOPs, nothing trained",
        "Not ranked",
        "control",
        "fitted on or chosen by these images",
        "dense",
    ):
        assert wanted in texts
    assert texts.index("lotm") < texts.index("topk") < texts.index("random") < texts.index("tome")
    lines = [
        line.split(" | ")
        for line in board.with_suffix(".md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert [
        (cells[0].strip("| "), cells[1]) for cells in lines if cells[1] in ("lotm", "topk", "random", "tome")
    ] == [
        ("1", "lotm"),
        ("2", "topk"),
        ("", "random"),
        ("", "tome"),
    ]


def test_building_where_nothing_can_be_written(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path))
    (tmp_path / "file").write_text("")
    for arguments, match in [
        (("--board", tmp_path / "none.csv"), "There is no leaderboard at"),
        (("--board", board, "--page", tmp_path / "file" / "x.html"), "Cannot write"),
        (("--board", board, "--page", board), "would be taken for another kind"),
    ]:
        code, text = run("leaderboard", "build", *arguments)
        assert code == 2
        assert match in text
    if os.geteuid():
        tmp_path.chmod(0o555)
    code, _ = run(
        "leaderboard", "build", "--board", board, "--page", tmp_path.parent / f"{tmp_path.name}.html"
    )
    tmp_path.chmod(0o755)
    assert code == 0


def cells_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_exports_for_timm(tmp_path):
    board = tmp_path / "b.csv"
    timed = {
        "lotm": {"images_per_s": 20.0, "latency_ms": 800.0, "top5": 99.0},
        "topk": {"limited": True, "n_images": 200},
    }
    add(board, made(tmp_path, rows={**CONTROL, **timed}))
    code, text = run("leaderboard", "export", board, "--format", "timm")
    assert code == 0
    lines = cells_of(text)
    header = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation"
    assert tuple(lines[0]) == TIMM_RESULTS == tuple(header.split(","))
    named = {line["model"]: line for line in lines}
    tag = "deit_small_patch16_224.fb_in1k"
    assert set(named) == {tag, f"{tag}+lotm", f"{tag}+tome", f"{tag}+random"}  # the marked row is left out
    assert tuple(named[f"{tag}+lotm"].values())[1:] == (
        "224",
        "92.500",
        "7.500",
        "99.000",
        "1.000",
        "22.05",
        "0.9",
        "bicubic",
    )
    lines = cells_of(run("leaderboard", "export", board, "--format", "timm-benchmark")[1])
    header = "model,infer_img_size,infer_samples_per_sec,infer_step_time,infer_batch_size,param_count,"
    header += "infer_gmacs,infer_macts"
    assert tuple(lines[0]) == TIMM_BENCHMARK == tuple(header.split(","))
    assert [tuple(line.values()) for line in lines] == [
        (f"{tag}+lotm", "224", "20.00", "800.000", "16", "22.05", "3.20", "")
    ]
    add(
        board,
        made(
            tmp_path,
            {"lotm": outcome(170), "smaller": outcome(160)},
            "more",
            rows={"smaller": {"control": True, "budget": None}},
            budget=0.5,
            reduction=0.5,
        ),
    )
    named = [line["model"] for line in cells_of(run("leaderboard", "export", board, "--format", "timm")[1])]
    assert f"{tag}+lotm@0.3" in named
    assert f"{tag}+lotm@0.5" in named
    assert f"{tag}+smaller" in named
    assert len(named) == len(set(named))


def test_other_exports_and_what_is_wrong(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path))
    lines = cells_of(run("leaderboard", "export", board)[1])
    assert tuple(lines[0])[: len(COLUMNS)] == COLUMNS
    assert [(line["method"], line["rank"], line["tied"]) for line in lines] == [
        (BASELINE, "", ""),
        ("lotm", "1", "1"),
        ("tome", "1", "1"),
        ("topk", "3", "0"),
        ("random", "", ""),
    ]
    assert r"\begin{tabular}" in run("leaderboard", "export", board, "--format", "latex")[1]
    code, _ = run("leaderboard", "export", board, "--format", "markdown", "--out", tmp_path / "x.md")
    assert code == 0
    assert "| 1 | lotm |" in (tmp_path / "x.md").read_text()
    assert (
        run("leaderboard", "export", tmp_path / "run", "--format", "timm")[0] == 0
    )  # a run's folder is a board of its own
    for arguments, match in [
        ((board, "--format", "timn"), "Did you mean"),
        ((board, "--format", "timm-benchmark"), "No row of this board has a speed to export"),
        ((tmp_path / "none.csv",), "There is no leaderboard at"),
    ]:
        code, text = run("leaderboard", "export", *arguments)
        assert (code, match in text) == (2, True), text


def test_rows_that_differ_in_little_are_told_apart(tmp_path):
    board = tmp_path / "b.csv"
    add(
        board,
        made(tmp_path, {"lotm": outcome(185)}),
        made(tmp_path, {"lotm": outcome(184)}, "seeded", seed=1),
    )
    text = (run("leaderboard", "build", "--board", board), board.with_suffix(".md").read_text())[1]
    assert "seed 0" in text
    assert "seed 1" in text
    assert row("lotm").seed == 0


@pytest.mark.loopback  # to chromedriver
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no chromium and chromedriver here",
)
def test_a_board_in_a_browser(tmp_path):
    """Sorting and finding work, narrow screens cut nothing off, and nothing goes wrong or out."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    board = tmp_path / "b.csv"
    run("leaderboard", "build", made(tmp_path), "--board", board)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(executable_path=shutil.which("chromedriver")))
    try:
        browser.get(board.with_suffix(".html").as_uri())

        def shown():
            return [
                name.text for name in browser.find_elements("css selector", "tbody tr:not([hidden]) .name")
            ]

        assert shown() == [BASELINE, "lotm", "tome", "topk", "random"]
        (head,) = (
            button
            for button in browser.find_elements("css selector", "thead button")
            if button.text.startswith("Top-1")
        )
        head.click()
        assert shown() == ["random", "topk", "tome", "lotm", BASELINE]  # 60, 75, 92, 92.5 and 95 %
        browser.find_element("css selector", "input[type=search]").send_keys("TO")
        assert shown() == ["topk", "tome", BASELINE]
        for width in (320, 480, 800, 1280):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.get_log("browser") == []
    finally:
        browser.quit()
