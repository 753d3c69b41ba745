"""Pages of made-up runs, and what a browser reads in them."""

import re
from html.parser import HTMLParser

from helpers.reports import made_up, run_info, stored
from tokred.report import page as report
from tokred.report.run_data import RunData


def material(rows=None, arrays=None, run=None, found_maps=None, **options):
    if rows is None:
        rows, arrays = made_up(**options)
    return RunData(rows, run or run_info(), stored(arrays), found_maps or {})


def html(data):
    return report.page(data)


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
