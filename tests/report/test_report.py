"""The page of a run: its content, that foreign text does nothing there, and that it asks no other host."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.command import run as command
from helpers.hostile import HOSTILE, Page
from helpers.reports import archive, change, made_up, maps, run_info, stored, write
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tokred.evaluation.run_folder import read_run
from tokred.report import classes, headlines, main_table, merge_maps, token_schedule
from tokred.report import page as report
from tokred.report.run_data import RunData
from tokred.tables import results_table
from tokred.tables.row import BASELINE, Row, to_csv


def material(rows=None, arrays=None, run=None, found_maps=None, **options):
    if rows is None:
        rows, arrays = made_up(**options)
    return RunData(rows, run or run_info(), stored(arrays), found_maps or {})


def html(data):
    return report.page(data.rows, data.run, data.predictions, data.maps)


class Reader(HTMLParser):
    """Sections, links and the cells of the main table, as a browser reads them."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.ids, self.refers, self.sections, self.table = [], [], [], [], [], []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [
            (tag, name, value)
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "action", "data")
        ]
        self.addresses += [
            (tag, name, f"#{found}")
            for name, value in attrs
            for found in re.findall(r"url\(#([^)]*)\)", value or "")
        ]
        assert not any(name.startswith("on") for name in values)
        self.ids += [values["id"]] if "id" in values else []
        self.sections += [values.get("id")] if tag == "section" else []
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.table[-1][-1] += data


FULL = {"found_maps": maps()}


def check_self_contained(page):
    """Nothing is fetched, ids are there once and are what is pointed at; returns the page as read."""
    found = Reader(page)
    assert len(found.ids) == len(set(found.ids))
    for tag, name, value in found.addresses:
        assert value.startswith("#") or (tag == "img" and value.startswith("data:image/")), (
            tag,
            name,
            value[:80],
        )
        assert not value.startswith("#") or value[1:] in found.ids, value
    for style in re.findall(r"<style[^>]*>(.*?)</style>", page, flags=re.DOTALL):
        assert "@import" not in style
        assert not re.findall(r"url\((?!#)", style)
    outside = re.findall(r"https?://[^\s\"'<>]+", page)
    assert set(outside) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }  # names of languages, not addresses
    return found


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


def test_the_table_shows_the_rows():
    rows, arrays = made_up()
    change(rows, 1, best=True)
    failed = Row("sit", status="unfitted", error="sit is not fitted; run tokred fit sit", budget=0.3)
    text = html(material([*rows, failed], arrays))
    lines = Reader(text).table
    head, body = lines[0], lines[1 : 2 + len(rows)]
    assert head == ["Method", "Top-1", "Drop [95 % interval]", "GFLOPs", "Reduction", "Training", "Speed-up"]
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
    assert f"At the plans given, {best.method}" in page


def test_a_run_of_which_nothing_came():
    rows = [Row(BASELINE, model="m", gflops=1.0), Row("lotm", status="failed", error="no")]
    page = report.page(rows, {"configuration": {}})
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


def oracle(labels, dense, found, groups, resamples=4000):
    """Drops by class and their intervals, one class and one resample after another."""
    rng, result = np.random.default_rng(1), {}
    for label in np.unique(labels):
        of = labels == label
        lost = (dense[of] == label).astype(float) - (found[of] == label)
        members = [lost[groups[of] == group] for group in np.unique(groups[of])]
        means = [
            100 * np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]).mean()
            for _ in range(resamples)
        ]
        result[str(label)] = (100 * lost.mean(), *np.quantile(means, [0.025, 0.975]))
    return result


def test_drops_by_class_and_their_intervals():
    rows, arrays = made_up(classes=3, per_class=24, methods=("lotm", "topk"))
    arrays["groups"] = np.arange(72) // 2  # images in pairs
    arrays["topk/prediction"][arrays["groups"] % 3 < 2] = 7
    found = classes.drops(material(rows, arrays))
    for k, method in enumerate(found.methods):
        expected = oracle(
            arrays["labels"], arrays["baseline/prediction"], arrays[f"{method}/prediction"], arrays["groups"]
        )
        for c, name in enumerate(found.names):
            drop, lo, hi = expected[name]
            assert found.drop[k, c] == pytest.approx(drop)
            assert found.lo[k, c] == pytest.approx(lo, abs=4.2)  # one image of 24, by chance of the draws
            assert found.hi[k, c] == pytest.approx(hi, abs=4.2)
    assert found.images.tolist() == [24, 24, 24]
    assert found.certain()[found.methods.index("topk")].all()


def test_plans_at_knobs_have_their_own_outcomes():
    """As in the paper's Table 2: one method at a budget, and at one knob at two sets of layers."""
    rows, arrays = made_up(methods=("lotm",))
    right = arrays["labels"]
    for stages in ("4 7 10", "4 7 11"):
        rows.append(Row("lotm", knob="40", stages=stages, tokens="156 116 76"))
        arrays[f"lotm@40@{stages}/prediction"] = (
            np.where(np.arange(len(right)) % 2, right, -1) if stages == "4 7 11" else right
        )
    rows.append(Row("lotm", knob="50", stages="4 7 10", tokens="146 96 48"))  # nothing is known of its images
    found = classes.drops(material(rows, arrays))
    assert found.methods == ["lotm, 30 %", "lotm, knob 40, layers 4 7 10", "lotm, knob 40, layers 4 7 11"]
    base = np.mean(arrays["baseline/prediction"] == right)
    np.testing.assert_allclose(found.drop[1:] @ found.images / 40, [100 * (base - 1), 100 * (base - 0.5)])


def test_drops_leave_out_images_without_a_label_or_by_wish_a_prediction():
    rows, arrays = made_up(classes=2, per_class=10, methods=("lotm",))
    arrays["labels"][0] = -2
    for name in ("baseline", "lotm"):
        arrays[f"{name}/prediction"][1] = -1
    assert classes.drops(material(rows, arrays)).images.tolist() == [9, 10]
    info = run_info()
    info["configuration"]["on_error"] = "skip"
    assert classes.drops(material(rows, arrays, info)).images.tolist() == [8, 10]
    assert classes.drops(material(rows)) is None


def test_of_many_classes_the_extremes_of_each_method():
    rows, arrays = made_up(classes=300, per_class=5, methods=tuple(f"m{k}" for k in range(12)), speed=False)
    found_material = material(rows, arrays, run_info(class_names=[f"class {c}" for c in range(300)]))
    found = classes.drops(found_material)
    assert not found.few
    for k in range(12):
        order = sorted(range(300), key=lambda c: found.drop[k, c])
        assert found.drop[k, found.worst(k)].tolist() == [found.drop[k, c] for c in order[::-1][:15]]
        assert found.drop[k, found.best(k)].tolist() == [found.drop[k, c] for c in order[:15]]
        assert np.isfinite(found.lo[k, found.worst(k)]).all()
    page = html(found_material)
    check_self_contained(page)
    assert len(page) < 1_500_000
    assert "class 299" in page or "class 298" in page
    assert "Of 300 classes" in page


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


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])  # to shrink a page takes minutes
@given(st.lists(ANYTHING, max_size=5))
def test_whatever_a_leaderboard_holds_there_is_a_page(rows):
    """It is made at the end of hours of work."""
    check_self_contained(report.page(rows, {"configuration": {}}))


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_have_a_true_minus_and_no_negative_zero(value):
    text = main_table.signed(value)
    assert "-" not in text
    assert text not in ("\u22120.00", "")
    assert float(text.replace("\u2212", "-")) == pytest.approx(value, abs=0.0051)


def test_report_writes_the_page_again(tmp_path):
    rows, arrays = made_up()
    folder = write(tmp_path / "run", rows, arrays, found_maps=maps())
    code, text = command("report", folder)
    assert code == 0, text
    assert "report.html" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="maps"' in page
    assert page == report.page(rows, run_info(), stored(arrays), maps())  # as a run makes it from memory
    code, text = command("report", folder, "--out", tmp_path / "other.html")
    assert code == 0, text
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == page


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
    refused("holds no run.json", tmp_path / "empty")
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
    refused("has not come to its end")
    (folder / "leaderboard.csv").write_text(to_csv(rows))
    (folder / "run.json").write_text("[1]")
    refused("is not a run of tokred")
    (folder / "run.json").write_text("{")
    refused("is not a run of tokred")


def test_a_page_has_what_a_leaderboard_had_when_it_was_written(tmp_path):
    """A report made from the files equals the one that a run would make from memory."""
    rows, arrays = made_up(budgets=(0.2, 0.3))
    run = read_run(write(tmp_path / "run", rows, arrays))
    assert report.page(run.rows, run.about, run.predictions, run.maps) == html(material(rows, arrays))
