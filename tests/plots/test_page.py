"""Pages are well-formed HTML without references, and hold the data that they are given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jaxdet.plots import page
from tests import browser

VOID = {"meta", "line", "polyline", "circle", "img", "rect", "br"}  # written without an end tag
NASTY = "<script>alert('1')</script> & \"x\""


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, text); raises AssertionError for bad nesting."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID or (tag in ("circle", "rect")):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, name=""):
        return [e for e in self.elements if e[0] == tag and name in (e[1].get("class") or "")]


def decode(url):
    kind, _, content = url.partition(";base64,")
    assert kind == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        image.load()
        return image


def check_self_contained(found, text):
    for _, attributes, _ in found.elements:
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert len(found.all("script")) == 1
    policy = next(e[1]["content"] for e in found.all("meta") if "http-equiv" in e[1])
    assert policy.startswith("default-src 'none'")
    assert any(e[1].get("name") == "viewport" for e in found.all("meta"))


def test_a_page_of_every_part_is_well_formed_and_escapes_all_texts():
    image = np.zeros((4, 6, 3))
    parts = [
        page.table([{"a": NASTY, "b": 1.5}], {"a": NASTY, "b": "b"}, caption=NASTY),
        page.matrix(np.eye(2, dtype=int), [NASTY, "x"], caption=NASTY),
        page.chart(NASTY, {NASTY: [(0, 1)]}),
        page.picture(image, NASTY, [page.BoxMark(np.ones(4), NASTY, True)]),
        page.folded(NASTY, page.code(NASTY)),
        page.heading(NASTY),
        page.paragraph(NASTY),
    ]
    text = page.document(NASTY, [(NASTY, page.grid(parts))])
    found = Page(text)
    check_self_contained(found, text)
    shown = [e[2] for e in found.elements if e[2] == NASTY]
    assert len(shown) >= 10 and found.all("h1")[0][2] == NASTY
    assert "@media print" in found.all("style")[0][2]


def test_tables_hold_numbers_in_full():
    rows = [{"name": "a", "value": 1 / 3}, {"name": "b", "value": 1234567}, {"name": "c"}]
    found = Page(page.table(rows, ["name", "value"]))
    cells = found.all("td")
    assert [e[2] for e in cells] == ["a", "0.3333", "b", "1,234,567", "c", ""]
    assert [float(e[1]["data-v"]) for e in cells if "data-v" in e[1]] == [1 / 3, 1234567]
    assert len(found.all("table", "sortable")) == 1 and len(found.all("button")) == 2


SORTED = """
const table = document.querySelector("table"), head = table.tHead.rows[0].cells[1];
const values = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent);
const orders = [];
for (let click = 0; click < 2; click++) {
  head.querySelector("button").click();
  orders.push([head.getAttribute("aria-sort"), ...values()]);
}
return orders;
"""


def test_tables_sort_by_exact_values_with_empty_cells_last(tmp_path):
    rows = [{"value": value} for value in (9.00004, None, "b", 10, "", 9.00001, "a", "2 to 3")]
    text = page.document(
        "sorted", [("", page.table([{"n": 1} | row for row in rows], ["n", "value"]))]
    )
    up, down = (["9", "9", "10"], ["a", "b"]), (["b", "a"], ["10", "9", "9"])
    found, said = browser.evaluate(text, SORTED, tmp_path)
    assert said == []
    assert found == [
        ["ascending", "2 to 3", *up[0], *up[1], "", ""],
        ["descending", *down[0], *down[1], "2 to 3", "", ""],
    ]


def test_a_failing_script_and_blocked_requests_are_seen_on_the_console(tmp_path):
    text = page.document("bad", [("", '<img src="https://example.org/a.png">')])
    text = text.replace('"use strict";', "missing.value;")
    _, said = browser.evaluate(text, "return 0;", tmp_path)
    assert len(said) == 2 and "missing is not defined" in " ".join(said)
    assert "Content Security Policy" in " ".join(said)


@pytest.mark.parametrize("values", [[0.1, 0.35, 0.2], [5, 5, 5], [-1e-9, 0, 1e6], [0, 0, 0]])
def test_curves_hold_their_points_inside_the_chart(values):
    points = list(enumerate(values))
    text = page.chart("loss", {"train": [*points, (3, float("nan"))], "val": points[:1]})
    found = Page(text)
    circles = found.all("circle")
    held = [(float(e[1]["data-x"]), float(e[1]["data-y"])) for e in circles]
    assert held == [*points, points[0]]
    for _, attributes, _ in circles:
        assert page.LEFT - 0.1 <= float(attributes["cx"]) <= page.WIDTH
        assert 0 <= float(attributes["cy"]) <= page.HEIGHT - page.BOTTOM + 0.1
    assert len(found.all("polyline")) == 2 and circles[1][2].startswith("train, epoch 1: ")
    ticks = [e[2] for e in found.all("text")]
    assert 4 <= len(ticks) <= 2 * page.MAX_TICKS + 7 and len({*ticks}) >= 4
    assert page.chart("loss", {"train": [(0, float("inf"))]}) == ""


def test_pictures_are_embedded_with_their_boxes():
    image = np.random.default_rng(0).uniform(size=(20, 30, 3))
    marks = [page.BoxMark(np.float32([1, 2, 11, 8]), "cell", predicted) for predicted in (0, 1)]
    found = Page(page.picture(image, "a.png", marks))
    (embedded,) = found.all("img")
    pixels = np.asarray(decode(embedded[1]["src"])) / 255
    assert pixels.shape == image.shape and abs(pixels.mean() - image.mean()) < 0.02
    boxes = [(e[1]["class"], e[1]["width"], e[1]["height"]) for e in found.all("rect")]
    assert boxes == [("box true", "10.0", "6.0"), ("box predicted", "10.0", "6.0")]
    large = Page(page.picture(np.zeros((900, 1600, 1)), "large"))
    assert decode(large.all("img")[0][1]["src"]).size == (640, 360)
