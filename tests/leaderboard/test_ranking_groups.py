"""Who is ranked against whom on a board, and what is excluded."""

import numpy as np
import pytest
from helpers.boards import CONTROL, GOOD, by_method, folder, made, outcome, standings

from tokred.evaluation import significance
from tokred.leaderboard import add, cells, export
from tokred.leaderboard.publish import ranked_rows as load
from tokred.leaderboard.ranking_groups import settings
from tokred.tables.row import BASELINE


def test_ranks_are_those_of_the_paired_tests(tmp_path):
    board = tmp_path / "b.csv"
    add(board, made(tmp_path))
    found = by_method(board)
    methods = ["lotm", "tome", "topk"]
    expected = significance.ranks([float(GOOD[m].mean()) for m in methods], [GOOD[m] for m in methods])
    assert [found[m].rank for m in methods] == expected == [1, 1, 3]
    assert found["random"].rank is None
    assert not any(standing.unpaired or standing.exclusions for standing in found.values())


def test_who_is_better_than_whom_by_top1_or_by_nll(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.exponential(size=200)
    losses = {"lotm": hard, "tome": hard + 0.05 + 0.1 * rng.random(200), "topk": hard + rng.normal(0, 1, 200)}
    nll = {name: {"nll": float(loss.astype(np.float32).mean(dtype=float))} for name, loss in losses.items()}
    board = tmp_path / "b.csv"
    add(board, folder(tmp_path / "r", GOOD, rows={**CONTROL, **nll}, losses=losses))
    found = by_method(board)
    names = {
        method: [[one.row.method for one in rows] for rows in (ranked.better_top1, ranked.better_nll)]
        for method, ranked in found.items()
    }
    assert names.pop("random") == [[], []]
    assert names == {"lotm": [["topk"], ["tome"]], "tome": [["topk"], []], "topk": [[], []]}
    assert cells.better(found["lotm"]) == ["better by top-1 than topk", "better by NLL than tome"]
    assert found["lotm"].rank == found["tome"].rank == 1  # ranks are by top-1 alone
    header, *lines = export.csv_text(settings(load(board)), "t").splitlines()
    assert header.endswith("verified,better_top1,better_nll")
    assert next(line for line in lines if line.startswith("lotm")).endswith(",topk,tome")
    board.write_text(board.read_text().replace(f"{nll['lotm']['nll']:.12g}", "0.5"))
    (mark,) = by_method(board)["lotm"].exclusions
    assert "nll 0.5 instead of" in mark


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


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"limited": True, "n_images": 200}, "first 200 images only"),
        ({"unfitted": True}, "random parameters, not fitted"),
        ({"fitted_here": True}, "fitted on or chosen by these images"),
        ({"status": "failed", "error": "no memory", "top1": None}, "failed: no memory"),
        ({"status": "unfitted", "error": "run fit", "top1": None}, "not fitted"),
        ({"data_hash": "other"}, "different images from the other rows"),
        ({"reduction": 0.25}, "saves 25.00 % of the FLOPs, less than its budget of 30 %"),
        ({"budget": None}, "its plan was set by hand, without a budget"),
        ({"top1": float("nan")}, "top-1 is"),
        ({"top1": 99.5}, "contradicts its predictions: top1 99.5 instead of 92"),
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


def test_rows_without_labels_are_marked_and_not_disputed(tmp_path):
    board = tmp_path / "b.csv"
    nothing = {"top1": None, "top1_lo": None, "top1_hi": None}
    add(board, made(tmp_path, {"lotm": outcome(185)}, rows={"lotm": nothing, BASELINE: nothing}))
    assert by_method(board)["lotm"].exclusions == ["no labels, so no top-1"]
