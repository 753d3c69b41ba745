"""The paper's tables: printed figures, FLOPs against the paper's own formulas, and the notes beside them."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from helpers.command import run
from PIL import Image

from tokred.core.costs import CostTable
from tokred.data import imagenet
from tokred.errors import TokredError
from tokred.evaluation.config import Config
from tokred.evaluation.config_file import read_config
from tokred.models import zoo
from tokred.studies.lotm_paper import printed
from tokred.studies.lotm_paper.join import join
from tokred.studies.lotm_paper.study import planned, weights_of
from tokred.tables.row import BASELINE, Row

pytestmark = pytest.mark.usefixtures("plain_outputs")

WIDTH = {"deit_t": 192, "deit_s": 384, "deit_b": 768}


def formula(model, counts):
    """Multiply-accumulates with n tokens (CLS included) in attention and in the MLP of each of 12 layers, by
    hand: Eq. 6 to 8 of the paper, five operations for each element of a LayerNorm, the patch embedding and
    the head."""
    d, total = WIDTH[model], 196 * 16 * 16 * 3 * WIDTH[model] + 1000 * WIDTH[model]
    for attention, mlp in counts:
        total += 4 * attention * d * d + 2 * attention**2 * d + 8 * mlp * d * d + 5 * d * (attention + mlp)
    return total + 5 * d * counts[-1][1]


def counts(layers, k):
    found, n = [], 197
    for layer in range(1, 13):
        after = n - k if layer in layers else n
        found.append((n, after))
        n = after
    return found


@pytest.fixture(scope="module")
def costs():
    return {model: CostTable(zoo.build(model)) for model in WIDTH}


def planned_lines(table, model, costs):
    """The lines of a table with FLOPs alone."""
    return join(table, model, planned(read_config(f"table{table}"), costs), comparable=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", WIDTH)
def test_flops_of_table_1_follow_from_the_papers_formulas(model, costs):
    found = {(line["layers"], line["k"]): line for line in planned_lines(1, model, costs[model])}
    assert set(found) == {("", None)} | {
        (layers, k) for layers in ("4 7 10", "4 7 11") for k in (10, 20, 30, 40, 44, 48)
    }
    for (layers, k), line in found.items():
        by_hand = formula(model, counts(tuple(map(int, layers.split())), k or 0)) / 1e9
        own = (
            1.5 * 196 * WIDTH[model] * len(layers.split()) / 1e9
        )  # LoTM's similarities: a product a pair, a norm a token
        assert by_hand - 1e-9 <= line["gflops"] <= by_hand + 1.05 * own + 1e-9
        assert line["gflops_diff"] == pytest.approx(line["gflops"] - line["gflops_printed"])


@pytest.mark.slow
def test_what_the_notes_say_of_the_printed_flops_is_so(costs):
    for model, layers, worst in (("deit_t", "4 7 10", 0.0070), ("deit_t", "4 7 11", 0.031)):
        off = [
            abs(line["gflops_diff"])
            for line in planned_lines(1, model, costs[model])
            if line["layers"] == layers
        ]
        assert max(off) == pytest.approx(worst, abs=0.001)
    for layers in ("4 7 10", "4 7 11"):  # DeiT-S: off by more than rounding at some k, whichever the layers
        assert (
            max(
                abs(line["gflops_diff"])
                for line in planned_lines(1, "deit_s", costs["deit_s"])
                if line["layers"] == layers
            )
            > 0.05
        )
    base = {one.k: one.gflops for one in printed.lines(1) if one.model == "deit_b" and one.k}
    slope, start = np.polyfit([10, 20, 30], [base[k] for k in (10, 20, 30)], 1)
    residuals = {k: g - (start + slope * k) for k, g in base.items()}
    assert 10 * slope == pytest.approx(-1.06, abs=0.005)
    assert residuals[40] == pytest.approx(13.97 - 13.37, abs=0.01)
    assert {k for k, off in residuals.items() if abs(off) > 0.2} == {40}
    assert costs["deit_s"].dense / 1e9 == pytest.approx(4.61, abs=0.005)
    assert costs["deit_b"].dense / 1e9 == pytest.approx(17.58, abs=0.005)


def test_printed_drops_and_their_misprints():
    wrong = {}
    for table in (2, 3, 4):
        lines = printed.lines(table)
        baseline = next(one for one in lines if one.method == BASELINE)
        for one in lines:
            if one.drop is not None and abs(one.drop - (baseline.top1 - one.top1)) > 0.006:
                wrong[table, one.method] = one.drop
    assert wrong == {
        (2, "sinkhorn"): 14.8,
        (2, "patchmerger"): 3.0,
        (2, "dpcknn"): 0.95,
        (2, "kmedoids"): 1.06,
        (2, "tome"): 0.17,
    }
    for one in printed.lines(1):  # Tables 2 to 4 repeat Table 1's lines on LoTM
        for table in (2, 3, 4):
            again = [
                other
                for other in printed.lines(table)
                if (other.model, other.method, other.k) == (one.model, one.method, one.k)
            ]
            assert all((other.top1, other.gflops) == (one.top1, one.gflops) for other in again)


@pytest.mark.slow
def test_tables_2_to_4_have_every_method_within_the_budget(costs):
    for table, model in ((2, "deit_s"), (3, "deit_b"), (4, "deit_t")):
        found = planned_lines(table, model, costs[model])
        matched = [line for line in found if line["k"] is None and line["method"] != BASELINE]
        assert {line["method"] for line in matched} == {
            "sinkhorn",
            "patchmerger",
            "sit",
            "dpcknn",
            "kmedoids",
            "tome",
            "lotm",
        }
        saved = [1 - line["gflops"] * 1e9 / costs[model].dense for line in matched]
        assert all(0.3 <= reduction <= 0.301 for reduction in saved)
        assert [line["layers"] for line in found if line["k"] is not None] == ["4 7 10", "4 7 11"]


def test_a_line_says_whether_the_interval_holds_what_is_printed():
    measured = {"top1": 79.0, "top1_lo": 78.6, "drop": 0.8, "drop_lo": 0.6, "drop_hi": 1.0, "gflops": 3.262}
    inside, outside = (Row("lotm", **measured, top1_hi=top1_hi) for top1_hi in (79.4, 79.1))
    for row, within in ((inside, True), (outside, False)):
        (line,) = join(2, "deit_s", [row], comparable=True)
        assert (line["top1_printed"], line["gflops_printed"]) == (79.19, 3.26)
        assert (round(line["top1_diff"], 2), line["within"]) == (-0.19, within)
        assert round(line["gflops_diff"], 3) == 0.002
    (elsewhere,) = join(2, "deit_s", [inside], comparable=False)  # other images: accuracies do not compare
    assert (elsewhere["top1"], elsewhere["top1_diff"], elsewhere["within"]) == (79.0, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "json"])
def test_flops_only_needs_no_data_and_no_weights(tmp_path, form):
    code, text = run("reproduce", "table4", "--flops-only", "--out", tmp_path / "out", "--format", form)
    assert code == 0
    assert "FLOPs alone" in " ".join(text.split()) or form != "table"
    assert "0.881" in text  # LoTM at 30 %
    table = pd.read_csv(tmp_path / "out" / "table4.csv")
    assert table.top1.isna().all()
    assert (table.gflops_diff - (table.gflops - table.gflops_printed)).abs().max() < 1e-9
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table4.csv", "table4.md", "table4.tex"}
    assert r"\toprule" in (tmp_path / "out" / "table4.tex").read_text()
    for name in ("table4.md", "table4.tex"):
        assert "FLOPs alone" in (tmp_path / "out" / name).read_text().splitlines()[0]
    if form == "json":
        assert json.JSONDecoder().raw_decode(text)[0][0]["Method"] == BASELINE


@pytest.fixture(scope="module")
def on_photodigits(tmp_path_factory, shared_costs):
    out = tmp_path_factory.mktemp("table4") / "out"
    command = (
        "reproduce",
        "table4",
        "--limit",
        "4",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--precision",
        "fp32",
        "--out",
        out,
    )
    return out, command, run(*command)


@pytest.mark.slow
def test_on_photodigits_the_title_cannot_be_mistaken(on_photodigits):
    out, _, (code, text) = on_photodigits
    assert code == 0, text
    assert "Measured on photodigits test, 4 images, NOT on ImageNet-1K" in text
    page = (out / "table4.md").read_text()
    assert "NOT on ImageNet-1K" in page.splitlines()[0]
    assert "| random, control |" in page
    table = pd.read_csv(out / "table4.csv")
    assert table[["top1_diff", "within"]].isna().all().all()
    measured = table[~table.control]
    assert measured.top1.notna().all()
    assert sorted(table[table.control].method) == ["lowres", "random"]
    board = pd.read_csv(out / "deit_t" / "leaderboard.csv")
    lotm = board[board.method == "lotm"]
    assert sorted(lotm.knob[lotm.budget.isna()]) == ["40", "40"]
    for layers in ("4 7 10", "4 7 11"):
        at = measured[(measured.layers == layers) & (measured.k == 40)]
        assert at.gflops.item() == pytest.approx(
            lotm.gflops[(lotm.stages == layers) & lotm.budget.isna()].item()
        )


@pytest.mark.slow
def test_a_finished_table_is_shown_again(on_photodigits):
    out, command, _ = on_photodigits
    before = (out / "table4.csv").read_bytes()
    code, again = run(*command)
    assert code == 0
    assert "was finished on" in again
    assert (out / "table4.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("shared_costs")
def test_models_without_weights_keep_their_flops(tmp_path):
    code, text = run("reproduce", "table3", "--out", tmp_path / "out", "--limit", "2")
    assert code == 1
    assert "deit_b is not measured here: No PhotoDigits weights are shipped for deit_b" in text
    assert pd.read_csv(tmp_path / "out" / "table3.csv").gflops.notna().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tabel1",), "Unknown table or figure 'tabel1'. Did you mean: table1"),
        (("table2", "--models", "deit_b"), "Table 2 has the models deit_s, not deit_b."),
        (("fig3", "--flops-only"), "--flops-only works for tables only"),
        (("table1", "--flops-only", "--format", "excel"), "Unknown --format 'excel'"),
        (("table2", "--data", "nowhere"), "No data at 'nowhere'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    code, text = run("reproduce", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert sentence in text
    assert "Traceback" not in text


def test_weights_by_model(tmp_path):
    for name in ("deit_t.safetensors", "deit_small_patch16_224-cd65a155.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert weights_of("deit_t", str(tmp_path)) == str(tmp_path / "deit_t.safetensors")
    assert weights_of("deit_s", str(tmp_path)) == str(tmp_path / "deit_small_patch16_224-cd65a155.pth")
    assert weights_of("deit_t", None) is None
    with pytest.raises(TokredError, match="0 weight files for deit_b"):
        weights_of("deit_b", str(tmp_path))
    with pytest.raises(TokredError, match="one file for 3 models"):
        weights_of("deit_t", str(tmp_path / "deit_t.safetensors"), 3)


@pytest.fixture(scope="module")
def made_up_imagenet(tmp_path_factory):
    """A folder of ImageNet's layout with one small image in each class, and random weights for DeiT-T."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for number, wnid in enumerate(imagenet.class_names(), start=1):
        folder = root / "val" / wnid
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
            folder / f"ILSVRC2012_val_{number:08d}.JPEG"
        )
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", num_classes=1000)
    (root / "weights").mkdir()
    safetensors.torch.save_file(model.state_dict(), root / "weights" / "deit_t.safetensors")
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("shared_costs")
def test_on_imagenet_differences_are_shown(made_up_imagenet, tmp_path):
    data, weights = made_up_imagenet / "val", made_up_imagenet / "weights"
    code, text = run(
        *("reproduce", "table1", "--models", "deit_t", "--data", data, "--weights", weights, "--limit", "4"),
        *("--batch-size", "4", "--workers", "0", "--precision", "fp32", "--no-controls"),
        *("--out", tmp_path / "out"),
    )
    assert code == 0, text
    assert "NOT on ImageNet-1K" not in text
    assert "Top-1 (%) printed" in (tmp_path / "out" / "table1.md").read_text()
    table = pd.read_csv(tmp_path / "out" / "table1.csv")
    assert (table.top1_diff - (table.top1 - table.top1_printed)).abs().max() < 1e-9
    assert table.within.notna().all()
    assert list(table.top1_printed[:2]) == [72.20, 72.16]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_costs")
def test_fig3_sweeps_the_papers_methods(tmp_path, monkeypatch):
    methods = read_config("fig3").methods
    short = Config(model="deit_t", methods=methods, budgets=(0.2, 0.3))
    monkeypatch.setattr("tokred.studies.lotm_paper.study.read_config", lambda _: short)
    out = tmp_path / "out"
    code, text = run(
        *("reproduce", "fig3", "--limit", "2", "--batch-size", "2", "--workers", "0", "--precision", "fp32"),
        *("--out", out, "--bench", "1", "--no-controls"),
    )
    assert code == 0, text
    assert "NOT on ImageNet-1K" in " ".join(text.split())
    for name in ("fig3-flops.svg", "fig3-flops.png", "fig3-speed.svg", "fig3-speed.png", "leaderboard.csv"):
        assert (out / name).stat().st_size > 1000
    board = pd.read_csv(out / "leaderboard.csv")
    assert set(board.method) == {BASELINE, *methods} == {line.method for line in printed.lines(2)}
    assert (board.images_per_s > 0).all()


@pytest.mark.slow
def test_fig1_is_similarity_on_deit_s_at_layer_1(tmp_path):
    code, text = run(
        "reproduce", "fig1", "--limit", "2", "--batch-size", "2", "--workers", "0", "--out", tmp_path / "out"
    )
    assert code == 0, text
    table = pd.read_csv(tmp_path / "out" / "similarity.csv")
    assert set(table.layer) == {1}
    assert set(table.model) == {"deit_s"}
