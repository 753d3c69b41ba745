"""The page in headless Chromium: sorting, light and dark, narrow screens, no request to other hosts."""

import json
import re
import shutil

import pytest
from helpers.reports import change, made_up, maps, run_info, stored

from tokred.evaluation.run_folder import Run
from tokred.report import page as report
from tokred.tables.row import Row

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.loopback,  # to chromedriver
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium and chromedriver here (Debian packages chromium, chromium-driver)",
    ),
]
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-dev-shm-usage"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(
        options, webdriver.ChromeService(executable_path=DRIVER)
    )  # a path given: nothing is downloaded
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Addresses of two pages: one budget, with maps and a row that failed, and a sweep over many classes."""
    folder = tmp_path_factory.mktemp("reports")
    rows, arrays = made_up(methods=("lotm", "tome", "topk", "evit", "random"))
    rows.append(
        Row(
            "sit",
            budget=0.3,
            status="unfitted",
            error="sit is not fitted " + "and this takes many words to say " * 4,
        )
    )
    change(rows, 1, best=True)
    change(rows, 0, limited=True)
    swept, many = made_up(budgets=(0.2, 0.4), classes=40, per_class=3)
    info = run_info(command="tokred compare --data " + "x" * 200)
    for name, made in (
        ("one", (rows, arrays, info, maps(("lotm", "tome", "topk")))),
        ("sweep", (swept, many, info)),
    ):
        (folder / name).mkdir()
        (folder / name / "report.html").write_text(
            report.page(Run(made[0], made[2], stored(made[1]), *made[3:])),
            encoding="utf-8",
        )
    return {name: (folder / name / "report.html").as_uri() for name in ("one", "sweep")}


def show(browser, address, width=1280, scheme="light"):
    mobile = width < 600
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": mobile},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get("about:blank")  # so that no script below meets the page that was shown before
    browser.get(address)


def unfold(browser):
    """Open all details, and return how many stay closed."""
    return browser.execute_script(
        """document.querySelectorAll("details").forEach((part) => (part.open = true));
        return document.querySelectorAll("details:not([open])").length"""
    )


def column(browser, header):
    """The header cell's place, and the column's cells as they stand now."""
    return browser.execute_script(
        """const table = document.querySelector("table.results");
        const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
        const place = heads.indexOf(arguments[0]);
        return [place, [...table.tBodies[0].rows].map((row) => row.cells[place].textContent.trim())];""",
        header,
    )


def press(browser, header):
    place, _ = column(browser, header)
    heads = browser.find_elements("css selector", "table.results thead th")
    heads[place].find_element("tag name", "button").click()
    sorts = [head.get_attribute("aria-sort") for head in heads]
    assert sorts.count("none") == len(heads) - 1
    return sorts[place], column(browser, header)[1]


def number(text):
    return float(re.match(r"[\d.+\u2212]+", text)[0].replace("\u2212", "-"))


@pytest.mark.parametrize("header", ["Top-1", "Drop [95 % interval]", "NLL rise", "GFLOPs", "Speed-up"])
def test_a_click_on_a_header_sorts_by_numbers_and_the_next_one_turns_it_round(browser, pages, header):
    show(browser, pages["one"])
    before = column(browser, header)[1]
    full = [text for text in before if text]
    assert len(full) < len(before)  # an empty cell is there to be last
    assert len({len(text.split(".")[0]) for text in full}) > 1 or header in (
        "NLL rise",
        "GFLOPs",
        "Speed-up",
    )  # sorted as text they would stand otherwise
    for direction, up in (("ascending", True), ("descending", False), ("ascending", True)):
        sort, cells = press(browser, header)
        assert sort == direction
        assert [number(text) for text in cells if text] == sorted(map(number, full), reverse=not up)
        assert cells[len(full) :] == [""] * (len(before) - len(full))


def test_names_sort_as_text_and_rows_stay_whole_by_keyboard_too(browser, pages):
    show(browser, pages["one"])
    whole = sorted(row.text for row in browser.find_elements("css selector", "table.results tbody tr"))
    _, cells = press(browser, "Method")
    assert [cell.split()[0] for cell in cells] == sorted(cell.split()[0] for cell in cells)
    button = browser.find_element("css selector", "table.results thead th button")
    button.send_keys("\ue007")  # enter
    assert [cell.split()[0] for cell in column(browser, "Method")[1]] == sorted(
        (cell.split()[0] for cell in cells), reverse=True
    )
    assert (
        sorted(row.text for row in browser.find_elements("css selector", "table.results tbody tr")) == whole
    )


def contrast(foreground, background):
    """WCAG 2's, of two colours in 0 to 255."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(foreground), luminance(background)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


COLOURS = """
const found = {};
const read = (text) => text.match(/[\\d.]+/g).map(Number);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  const hidden = ["SCRIPT", "STYLE"].includes(node.tagName) || !node.getClientRects().length;
  if (!walker.currentNode.textContent.trim() || hidden) continue;
  let behind = node;
  const alpha = (part) => read(getComputedStyle(part).backgroundColor)[3] ?? 1;
  while (behind && alpha(behind) === 0) behind = behind.parentElement;
  const style = getComputedStyle(node);
  const ink = read(node.closest("svg") ? style.fill : style.color).slice(0, 3);
  const paper = read(getComputedStyle(behind ?? document.documentElement).backgroundColor).slice(0, 3);
  found[[ink, paper]] = [ink, paper, node.tagName + "." + node.className];
}
return Object.values(found);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["one", "sweep"])
def test_all_text_can_be_read_in_light_and_dark(browser, pages, scheme, page):
    show(browser, pages[page], scheme=scheme)
    assert unfold(browser) == 0
    found = browser.execute_script(COLOURS)
    assert len(found) >= 8
    poor = {
        what: round(contrast(ink, paper), 2) for ink, paper, what in found if contrast(ink, paper) < 4.5
    }  # AA
    assert not poor
    paper = browser.execute_script(
        "return getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (sum(paper) > 600) == (scheme == "light")


@pytest.mark.parametrize("page", ["one", "sweep"])
@pytest.mark.parametrize("width", [320, 390, 700, 1100, 1280])
def test_the_page_does_not_scroll_sideways_but_its_tables_do(browser, pages, page, width):
    show(browser, pages[page], width)
    assert unfold(browser) == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= browser.execute_script(
        "return innerWidth"
    )
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map((box) => [box.scrollWidth, box.clientWidth])"
    )
    if width < 600:
        assert any(inside > box for inside, box in boxes)
    inside, box = browser.execute_script(
        """const box = document.querySelector(".results").closest(".scroll");
        return [box.scrollWidth, box.clientWidth]"""
    )
    assert inside <= box  # nothing of the results table is cut off
    outside = browser.execute_script(
        """const parts = [...document.querySelectorAll("table, svg, img, pre")];
        return parts.filter((part) => !part.closest(".scroll, .maps")).length"""
    )
    assert outside == 0


@pytest.mark.parametrize("page", ["one", "sweep"])
def test_nothing_is_asked_of_another_host_and_nothing_goes_wrong(browser, pages, page):
    browser.get_log("performance"), browser.get_log("browser")
    show(browser, pages[page])
    press(browser, "Method")
    browser.execute_script("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'))")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert pages[page] in asked
    assert all(address == pages[page] or address.startswith("data:") for address in asked)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")


def test_the_policy_holds_back_what_a_page_must_not_do(browser, pages, tmp_path):
    """A foreign script and image in the same page neither run nor load: the test above would see them."""
    path = tmp_path / "spoilt.html"
    text = (report.page(Run([Row("baseline")], run_info()))).replace(
        "<main>", "<main><script>window.spoilt = true</script><img src='http://127.0.0.1:9/x.png'>"
    )
    path.write_text(text, encoding="utf-8")
    show(browser, path.as_uri())
    assert browser.execute_script("return window.spoilt === undefined")
    assert sum("Content Security Policy" in entry["message"] for entry in browser.get_log("browser")) >= 2


def test_without_scripts_everything_is_there(browser, pages):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["one"])
        assert not browser.find_elements("css selector", "table button")
        assert len(browser.find_elements("css selector", "table.results tbody tr")) == 7
        assert browser.find_element("css selector", "#plots svg").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
