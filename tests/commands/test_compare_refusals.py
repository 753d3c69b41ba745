"""Input that `tokred compare` and `tokred sweep` refuse, in one sentence and before any work."""

import pytest
from helpers.command import run
from PIL import Image

from tokred.models import zoo

pytestmark = pytest.mark.usefixtures("shared_costs")

SMALL = ("--model", "deit_t", "--limit", "6", "--batch-size", "3", "--workers", "0", "--precision", "fp32")
FEW = (*SMALL, "--methods", "lotm,topk", "--no-controls")


@pytest.mark.parametrize("budgets", ["0.1:0.6", "0.6:0.1:0.1", "0.1:0.6:0", "a", "", "0.1:0.55:0.1"])
def test_budgets_that_are_none(budgets, tmp_path):
    code, text = run("sweep", "--model", "deit_t", "--budgets", budgets, "--out", tmp_path / "out")
    assert code == 2
    assert "FIRST:LAST:STEP" in text or "budget is empty" in text


BAD = {
    "unknown model": (["--model", "deit_ss"], "Unknown model 'deit_ss'. Did you mean"),
    "unsupported model": (
        ["--model", "swin_tiny_patch4_window7_224"],
        "SwinTransformer is not a standard timm VisionTransformer",
    ),
    "unknown method": (["--methods", "lotm,tomee"], "Unknown method 'tomee'. Did you mean: tome"),
    "a method that is markup": (["--methods", "[red]"], "Unknown method '[red]'"),
    "unknown option": (["--set", "lotm.ordr=append"], "Did you mean: order"),
    "malformed option": (["--set", "lotm"], "METHOD.OPTION=VALUE"),
    "option of an unknown method": (["--set", "lotmm.order=append"], "Did you mean: lotm"),
    "no data": (["--data", "/no/such/folder"], "No data at"),
    "unknown device": (["--device", "tpu"], "cannot be used here"),
    "unknown precision": (["--precision", "fp7"], "Unknown precision"),
    "budget of one": (["--budget", "1"], "between 0 and 1"),
    "budget in per cent": (["--budget", "30"], "between 0 and 1"),
    "budget out of reach": (["--budget", "0.9", "--methods", "lotm"], "can save at most"),
    "no images": (["--limit", "0"], "--limit"),
    "stages in words": (["--stages", "four"], "--stages takes layer numbers"),
    "stages too deep": (["--stages", "4 13"], "layers from 1 to 12"),
    "unknown protocol": (["--protocol", "nativ"], "Did you mean: native"),
    "no stages": (["--stages", ""], "at least one layer"),
    "no attention before the first layer": (
        ["--methods", "kmedoids", "--stages", "1 4"],
        "no attention before layer 1",
    ),
    "negative seed": (["--seed", "-1"], "--seed must lie between 0"),
    "an option out of range": (["--methods", "dpcknn", "--set", "dpcknn.neighbors=0"], "at least 1"),
    "a device that computes nothing": (["--device", "meta"], "computes nothing"),
    "a device of another package": (["--device", "hpu"], "cannot be used here"),
    "a budget that is no number": (["--budget", "nan"], "between 0 and 1"),
    "empty batches": (["--batch-size", "0"], "at least 1"),
    "huge batches": (["--batch-size", "99999999999"], "--batch-size is at most 65,536 images"),
    "no weights shipped": (["--model", "deit_b"], "No PhotoDigits weights are shipped for deit_b"),
    "missing weights": (["--weights", "/no/such.safetensors"], "No weight file"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words, tmp_path):
    base = [] if "--model" in arguments else ["--model", "deit_t"]
    code, text = run("compare", *base, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert words in text
    assert text.startswith("Error: ")
    assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_of_somebody_else_are_kept(tmp_path):
    (tmp_path / "table.md").write_text("mine")
    code, text = run("compare", *FEW, "--out", tmp_path)
    assert code == 2
    assert "contains table.md but no run.json" in text
    assert (tmp_path / "table.md").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "table.md"]  # no lock is left beside it
    for content in ('{"configuration": null}', '{"configuration": "x"}', "[]"):
        (tmp_path / "run.json").write_text(content)
        code, text = run("compare", *FEW, "--out", tmp_path)
        assert code == 2
        assert "is not a run of tokred" in text


def test_a_card_that_is_no_card_is_ignored(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((zoo.SHIPPED / "deit_t.safetensors").read_bytes())
    weights.with_suffix(".json").write_text("{broken")
    assert zoo.load_file("deit_t", weights).card == {}


@pytest.mark.slow
def test_corrupt_weights_and_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\0" * 40)
    code, text = run("compare", *FEW, "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "out")
    assert code == 2
    assert "cannot be read" in text
    code, text = run("compare", *FEW, "--out", tmp_path / "w.safetensors" / "out")
    assert code == 2
    assert "cannot be written" in text


def test_weights_for_other_classes(tmp_path):
    (tmp_path / "data" / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "val" / "cat" / "a.png")
    weights = zoo.SHIPPED / "deit_t.safetensors"
    code, text = run(
        "compare",
        "--model",
        "deit_t",
        "--data",
        tmp_path / "data",
        "--weights",
        weights,
        "--out",
        tmp_path / "out",
    )
    assert code == 2
    assert "has 1 classes" in text


@pytest.mark.slow
def test_an_unreadable_image_ends_the_run_by_name(tmp_path):
    for label in range(10):
        (tmp_path / "data" / "val" / str(label)).mkdir(parents=True)
        (tmp_path / "data" / "val" / str(label) / "a.png").write_bytes(b"no image")
    weights = zoo.SHIPPED / "deit_t.safetensors"
    for workers in ("0", "1"):
        code, text = run(
            "compare",
            "-m",
            "deit_t",
            "--data",
            tmp_path / "data",
            "--weights",
            weights,
            "--out",
            tmp_path / "o",
            "--workers",
            workers,
            *FEW[-3:],
        )
        assert code == 2
        assert "a.png cannot be read" in text
        assert "Traceback" not in text
