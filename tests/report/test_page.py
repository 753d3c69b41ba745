"""The page of a run: its sections, that foreign text does nothing there, and that it asks no other host."""

import base64
import re

import numpy as np
import pytest
from helpers.command import run as command
from helpers.hostile import HOSTILE, Page
from helpers.pages import check_self_contained, html, material
from helpers.reports import archive, change, made_up, maps, run_info, stored, write
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tokred.evaluation.run_folder import Run, read_run
from tokred.report import headlines, merge_maps, token_schedule
from tokred.report import page as report
from tokred.tables.row import BASELINE, Row, to_csv

FULL = {"found_maps": maps()}


def test_the_page_has_every_section_and_asks_no_other_host():
    page = html(material(**FULL))
    found = check_self_contained(page)
    assert found.sections == ["table", "plots", "maps", "classes", "tokens", "origin", "all"]
    assert page.count('<svg class="bar"') == 4
    assert page.count("data:image/jpeg;base64,") == 2 * 3  # two images, each by itself and with two methods


def test_the_policy_allows_this_script_and_nothing_from_elsewhere():
    import hashlib

    page = html(material())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}'" in policy
    assert "http" not in policy


def test_rows_without_a_budget_and_images_without_labels():
    rows, arrays = made_up(labelled=False)
    change(rows, None, budget=None)
    found = material(rows, arrays)
    page = html(found)
    check_self_contained(page)
    assert "These images have no labels" in page
    assert "Top-1</th>" not in page
    assert "Agreement [95 % interval]</th>" in page
    assert "Agreement with the dense model (%)" in page  # of the plot
    assert 'id="classes"' not in page
    best = max((row for row in rows if row.method not in (BASELINE, "random")), key=lambda row: row.agreement)
    assert f"With plans set by hand, {best.method}" in page


def test_a_run_of_which_nothing_came():
    rows = [Row(BASELINE, model="m", gflops=1.0), Row("lotm", status="failed", error="no")]
    page = report.page(Run(rows, {"configuration": {}}))
    check_self_contained(page)
    assert "No method has a result here" in page
    assert "No result, failed: lotm" in page


def test_warnings_say_what_a_reader_must_know():
    rows, arrays = made_up()
    change(rows, None, limited=True, n_images=40, n_failed=2, on_error="skip")
    change(rows, 0, baseline_off=True, published_top1=72.13)
    change(rows, 1, unbeaten="random lowres")
    change(rows, 2, fitted_here=True)
    text = " ".join(
        headlines.warnings(material(rows, arrays, run_info(kinds={"greyscale": 3}, smallest_batch=2)))
    )
    for part in (
        "first 40 images",
        "72.13 %",
        "2 images could not be read and are left out",
        "better than random, lowres: ",
        "3 greyscale",
        "had 2 images",
    ):
        assert part in text


def test_the_summary_names_no_row_that_cannot_be_the_best():
    rows, arrays = made_up(methods=("lotm", "tome", "topk"))
    change(rows, "lotm", fitted_here=True)
    change(rows, "tome", reduction=0.1)
    page = html(material(rows, arrays))
    assert re.search(r"At 30\s% fewer FLOPs, topk has", page)
    change(rows, "topk", fitted_here=True)
    assert re.search(
        r"At 30\s% fewer FLOPs, lotm has", html(material(rows, arrays))
    )  # and the warning says what it is


def test_the_origin_says_where_it_came_from():
    info = run_info(command="tokred compare --model deit_t", software={"numpy": "9.9.9"}, seconds=1234.4)
    page = html(material(run=info))
    for part in (
        "tokred compare --model deit_t",
        "9.9.9",
        "1,234 s",
        "cd" * 32,
        "ab" * 32,
        "deit_t-sit.safetensors",
    ):
        assert part in page


def test_foreign_text_is_shown_and_does_nothing():
    def made(texts):
        rows, arrays = made_up(methods=("lotm", "tome"), classes=len(texts), per_class=1, speed=False)
        for text in texts:
            common = {"dataset": text, "options": text, "weights": text, "device": text, "model": text}
            rows.append(Row(f"x{text}", **common, status="failed", error=text))
        change(rows, 0, dataset=texts[0], weights=texts[0], device=texts[0])
        info = run_info(
            class_names=texts,
            command=texts[1],
            card={"note": texts[2]},
            kinds=dict.fromkeys(texts, 1),
            more={"text": texts},
        )
        return Page(html(material(rows, arrays, info)))

    clean, page = made([f"plain {k}" for k in range(len(HOSTILE))]), made(HOSTILE)
    assert page.tags == clean.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in clean.attributes]
    shown = "".join(page.data)
    for text in HOSTILE:
        assert shown.count(report.visible(text)) >= 8


def test_names_in_plots_are_text_whatever_they_are():
    rows, arrays = made_up(methods=("lotm", "tome"))
    change(rows, 1, method="$x^2$ <b>&")
    change(rows, 2, method="漢字\u202eé")
    page = html(material(rows, arrays))
    check_self_contained(page)
    assert page.count("$x^2$ &lt;b&gt;&amp;") >= 3  # table, two plots
    assert page.count("漢字\\u202eé") >= 3


def test_tokens_after_each_layer():
    rows, arrays = made_up(methods=("lotm",))
    change(rows, 1, stages="2 4", tokens="9 3")
    first, second = token_schedule.schedules(material(rows, arrays, run_info(patches=16, depth=5)))
    assert (first.name, first.tokens) == (BASELINE, [16] * 5)
    assert (second.tokens, second.changed) == ([16, 9, 9, 3, 3], [False, True, False, True, False])
    assert second.share == [5, 3, 3, 1, 1]
    (alone,) = token_schedule.schedules(
        material(rows, arrays, {"configuration": {}})
    )  # runs from before it was written down
    assert alone.tokens == [None, 9, 9, 3]


def test_maps_show_what_each_method_takes_the_image_for():
    rows, arrays = made_up(methods=("lotm", "topk"))
    arrays["baseline/prediction"][3], arrays["lotm/prediction"][3], arrays["topk/prediction"][3] = 0, 0, 5
    names = [f"<{c}>" for c in range(10)]
    subject = merge_maps.subjects(
        material(rows, arrays, run_info(class_names=names), maps(("topk", "lotm")))
    )[0]
    assert (subject.index, subject.label, subject.before) == (3, "<0>", "<0>")
    first, *others = subject.pictures
    assert (first.name, first.prediction, first.right, first.changed) == ("", "<0>", True, False)
    seen = {picture.name: (picture.prediction, picture.right, picture.changed) for picture in others}
    assert seen == {"lotm": ("<0>", True, False), "topk": ("<5>", False, True)}
    assert [picture.name for picture in others] == [
        row.method for row in rows[1:]
    ]  # in the order of the table


NUMBERS = st.none() | st.floats(0, 100) | st.sampled_from([0.0, -1.0, float("nan"), float("inf")])


ANYTHING = st.builds(
    Row,
    method=st.sampled_from([BASELINE, "lotm", "tome"]),
    status=st.sampled_from(["ok", "failed"]),
    stages=st.sampled_from(["", "4 7", "x"]),
    tokens=st.sampled_from(["", "9 4", "9"]),
    **dict.fromkeys(
        (
            "budget",
            "reduction",
            "gflops",
            "top1",
            "top1_lo",
            "top1_hi",
            "drop",
            "drop_lo",
            "drop_hi",
            "agreement",
        ),
        NUMBERS,
    ),
    **dict.fromkeys(("images_per_s", "speedup", "published_top1"), NUMBERS),
    **dict.fromkeys(("control", "best", "unfitted", "limited", "baseline_off", "fitted_here"), st.booleans()),
)


@pytest.mark.slow
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])  # to shrink a page takes minutes
@given(st.lists(ANYTHING, max_size=5))
def test_whatever_a_leaderboard_holds_there_is_a_page(rows):
    """It is made at the end of hours of work."""
    check_self_contained(report.page(Run(rows, {"configuration": {}})))


def test_report_writes_the_page_again(tmp_path):
    rows, arrays = made_up()
    folder = write(tmp_path / "run", rows, arrays, found_maps=maps())
    code, text = command("report", folder)
    assert code == 0, text
    assert "report.html" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="maps"' in page
    assert page == report.page(Run(rows, run_info(), stored(arrays), maps()))  # as a run makes it from memory
    code, text = command("report", folder, "--out", tmp_path / "other.html")
    assert code == 0, text
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_report_of_what_is_no_run(tmp_path):
    rows, arrays = made_up()
    folder = write(tmp_path / "run", rows, arrays)

    def refused(part, target=folder):
        code, text = command("report", target)
        assert code == 2, text
        assert part in " ".join(text.split())
        assert "Traceback" not in text

    refused("There is no folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("contains no run.json", tmp_path / "empty")
    refused("There is no folder", folder / "run.json")
    (folder / "predictions.npz").write_bytes(b"PK\x03\x04 damaged")
    refused("predictions.npz is damaged")
    (folder / "predictions.npz").unlink()
    (folder / "maps.npz").write_bytes(archive(index=np.arange(2)))
    refused("maps.npz is damaged")
    (folder / "maps.npz").unlink()
    assert command("report", folder)[0] == 0  # without predictions there are no classes, but a page
    (folder / "leaderboard.csv").write_text(
        to_csv(rows).replace("\n" + rows[0].method + ",,false", "\nlotm,,much")
    )
    refused("column control holds 'much', expected true or false")
    (folder / "leaderboard.csv").write_text("a,b\n1,2\n")
    refused("column 'a' is not tokred's")
    (folder / "leaderboard.csv").unlink()
    refused("the run is unfinished")
    (folder / "leaderboard.csv").write_text(to_csv(rows))
    (folder / "run.json").write_text("[1]")
    refused("is not a run of tokred")
    (folder / "run.json").write_text("{")
    refused("is not a run of tokred")


@pytest.mark.slow
def test_a_page_has_what_a_leaderboard_had_when_it_was_written(tmp_path):
    """A report made from the files equals the one that a run would make from memory."""
    rows, arrays = made_up(budgets=(0.2, 0.3))
    run = read_run(write(tmp_path / "run", rows, arrays), with_maps=True)
    assert report.page(run) == html(material(rows, arrays))
