"""Boards as they are read: the pages, in Markdown, HTML and a browser."""

import os
import random
import re
import shutil
from html.parser import HTMLParser

import pytest
from helpers.boards import CONTROL, GOOD, made, outcome, row
from helpers.command import run

from tokred.leaderboard import add
from tokred.tables.row import BASELINE


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
            assert len(re.findall(r"(?<!\\)\|", line)) == 12
    for name in ("latex", "markdown", "csv"):
        code, text = run("leaderboard", "export", board, "--format", name)
        assert code == 0, text


def test_a_page_says_what_is_ranked_and_what_is_not(tmp_path):
    board = tmp_path / "b.csv"
    rows = {**CONTROL, "tome": {"fitted_here": True}}
    code, text = run("leaderboard", "build", made(tmp_path, rows=rows), "--board", board)
    assert code == 0
    assert "2 ranked rows in 1 group; 1 row excluded." in text
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
        (("--board", board, "--page", board), "--page takes the name of an HTML file"),
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


@pytest.mark.slow
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
