"""Self-contained HTML pages: tables that sort, curves that show their values, pictures.

    text = document("Two runs", [("Scores", table(rows, columns)), ("Loss", chart("loss", series))])

A page needs no server, no network and no library; its content security policy forbids requests.
The functions return HTML; all texts that they are given are escaped.  Without scripts, tables keep
their order, and the points of curves have tooltips.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxdet import tables
from jaxdet.types import Array

WIDTH, HEIGHT = 360, 220  # of a chart, in units of its view box
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 34  # margins around the curves
MAX_TICKS = 6
MAX_UNBROKEN = 24  # characters of a text that stays on one line of its cell
MAX_PICTURE = 640  # pixels of the longer side of an embedded picture
QUALITY = 85  # of the embedded JPEG files

Point = tuple[float, float]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light; --line: #ccc; --soft: #f3f3f3; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; }
body { padding: 0 1rem 3rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
h3 { font-size: 1em; }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border: 1px solid var(--line); padding: .2rem .5rem; text-align: left; }
td { vertical-align: top; overflow-wrap: anywhere; min-width: 5em; }
td.s { white-space: nowrap; min-width: 0; }
td:first-child { overflow-wrap: normal; background: #fff; }
.scroll :is(th, td):first-child { position: sticky; left: 0; }
td.n { text-align: right; }
th { background: var(--soft); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.grid { display: grid; gap: 1rem; }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure :is(svg, img) { width: 100%; height: auto; display: block; background: #fff; }
.picture { position: relative; }
.picture svg { position: absolute; inset: 0; height: 100%; background: none; }
figcaption { font-size: .9em; overflow-wrap: anywhere; }
figcaption output { display: block; min-height: 1.4em; }
.chart text { font: 11px sans-serif; fill: #444; }
.chart .axis { stroke: #ddd; }
.chart polyline { fill: none; stroke-width: 1.6; }
.name { display: inline-block; margin-left: .8em; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; }
.box { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.true { stroke: #00c800; } .predicted { stroke: #e00000; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .5rem; }
@media (max-width: 40rem) {
  body { padding: 0 .6rem 2rem; }
  table { font-size: .8em; }
  th, td { padding: .15rem .3rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10px; }
  .scroll { overflow: visible; }
  .grid { grid-template-columns: repeat(3, 1fr); }
  th button { display: contents; }  /* or headings repeated on later pages are empty */
  th button::after { content: none !important; }
  .scroll :is(th, td):first-child { position: static; }
  h2, h3, summary, caption { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""
PALETTE = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#777")
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const compare = (a, b) => {  // numbers before texts, and empty cells last
      const [x, y] = [value(a), value(b)], [p, q] = [parseFloat(x), parseFloat(y)];
      if (!x || !y) return !x - !y;
      const order = isNaN(p) || isNaN(q) ? isNaN(p) - isNaN(q) || x.localeCompare(y) : p - q;
      return up ? order : -order;
    };
    const rows = [...body.rows].sort(compare);
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
}
for (const svg of document.querySelectorAll("svg.chart")) {
  const points = [...svg.querySelectorAll("circle")];
  const shown = svg.parentElement.querySelector("output");
  const show = event => {
    let best = null, least = Infinity;
    for (const point of points) {
      point.setAttribute("r", 2);
      const box = point.getBoundingClientRect();
      const distance = Math.hypot(box.x + box.width / 2 - event.clientX,
                                  box.y + box.height / 2 - event.clientY);
      if (distance < least) [best, least] = [point, distance];
    }
    if (best) { best.setAttribute("r", 5); shown.textContent = best.textContent; }
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
"""


class BoxMark(NamedTuple):
    """A box to draw on a picture."""

    corners: Array  # [4] in pixels of the picture
    text: str
    predicted: bool  # red; otherwise green


def document(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A page of sections (heading, HTML)."""
    parts = [f"<section><h2>{escape(heading)}</h2>{html}</section>" for heading, html in sections]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{chr(10).join(parts)}\n<script>{SCRIPT}</script>"
        "</body></html>\n"
    )


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading of a part of a section."""
    return f"<h3>{escape(text)}</h3>"


def code(text: str) -> str:
    """A block of preformatted text, whose long lines wrap."""
    return f"<pre>{escape(text)}</pre>"


def folded(summary: str, html: str) -> str:
    """`html` below a line `summary`; it is shown after a click on the line, and in print."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def table(rows: Sequence[Mapping[str, Any]], columns: tables.Columns, *, caption: str = "") -> str:
    """A table that a click on a heading sorts by exact values; columns as in `jaxdet.tables`.

    Columns of numbers are right-aligned.
    """
    headings = tables.headings(columns)
    numeric = {
        key: all(row.get(key) is None or tables.is_number(row[key]) for row in rows)
        for key in headings
    }
    head = "".join(f'<th scope="col"><button>{escape(h)}</button></th>' for h in headings.values())
    cells = ([_cell(row.get(key), numeric[key]) for key in headings] for row in rows)
    body = "".join(f"<tr>{''.join(of_row)}</tr>" for of_row in cells)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    inner = f"{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="sortable">{inner}</table></div>'


def matrix(counts: Array, names: Sequence[str], *, caption: str = "") -> str:
    """Counts [K, K] by true class (rows) and predicted class; shades are fractions of the row."""
    counts = np.asarray(counts)
    shades = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for name, values, of_row in zip(names, counts.tolist(), shades.tolist(), strict=True):
        cells = "".join(
            f'<td class="n s" style="background:rgba(31,119,180,{0.6 * shade:.2f})">{value}</td>'
            for value, shade in zip(values, of_row, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    inner = f"<caption>{escape(caption)}</caption><thead><tr><th>true \\ predicted</th>{head}</tr>"
    inner += f"</thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'


def chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    xlabel: str = "epoch",
    names: Sequence[str] = (),
) -> str:
    """Curves {name: [(x, y)]} and, below them, the values of the point nearest to the pointer.

    Points that are not finite are left out.

    names: names of the curves of all charts of a page, which give a name the same color in each.
    """
    kept = {
        name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)]
        for name, points in series.items()
    }
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    xs, ys = (_ticks(min(values), max(values)) for values in zip(*every, strict=True))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> Point:
        across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
        return LEFT + across * (right - LEFT), bottom - up * (bottom - TOP)

    parts = []
    for x in xs:
        at = place(x, ys[0])[0]
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 14, f"{x:g}", "middle"))
    for y in ys:
        at = place(xs[0], y)[1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 5, at + 4, f"{y:.4g}", "end"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 4, xlabel, "middle"))
    keys, known = [], [*names] or [*kept]
    for name, points in kept.items():
        color = PALETTE[known.index(name) % len(PALETTE)]
        places = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" style="stroke:{color}"/>')
        for (x, y), (cx, cy) in zip(points, places, strict=True):
            said = escape(f"{name}, {xlabel} {x:g}: {y:.6g}")
            parts.append(
                f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2" style="fill:{color}" data-x="{x!r}" '
                f'data-y="{y!r}"><title>{said}</title></circle>'
            )
        key = f'<span class="key" style="background:{color}"></span>'
        keys.append(f'<span class="name">{key}{escape(name)}</span>')
    return (
        f'<figure><svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg><figcaption><b>{escape(title)}</b>'
        f"{''.join(keys)}<output></output></figcaption></figure>"
    )


def picture(image: Array, title: str, boxes: Sequence[BoxMark] = ()) -> str:
    """An image [H, W, C] of pixel values in [0, 1] with boxes, embedded in the page."""
    height, width = image.shape[:2]
    marks = "".join(_box(mark) for mark in boxes)
    return (
        f'<figure><div class="picture"><img src="{_data_url(image)}" alt="{escape(title)}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{marks}</svg></div>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def grid(parts: Iterable[str]) -> str:
    """Figures side by side, as many as fit into the width."""
    return f'<div class="grid">{"".join(parts)}</div>'


def _cell(value: Any, numeric: bool) -> str:
    text = tables.cell_text(value)
    kind = "n s" if numeric else "s" if len(text) <= MAX_UNBROKEN else ""
    exact = f' data-v="{value!r}"' if tables.is_number(value) else ""
    return f'<td class="{kind}"{exact}>{escape(text)}</td>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances that enclose the range."""
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / (MAX_TICKS - 1)
    unit = 10.0 ** floor(log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(mark: BoxMark) -> str:
    x0, y0, x1, y1 = map(float, mark.corners)
    kind = "predicted" if mark.predicted else "true"
    return (
        f'<rect class="box {kind}" x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" '
        f'height="{max(y1 - y0, 0):.1f}"><title>{escape(mark.text)}</title></rect>'
    )


def _data_url(image: Array) -> str:
    pixels = np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((MAX_PICTURE, MAX_PICTURE))
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
