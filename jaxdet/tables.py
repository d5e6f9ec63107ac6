"""Tables as text: Markdown to read, comma-separated values for a spreadsheet."""

import csv
import io
from collections.abc import Mapping, Sequence


def to_markdown(rows, columns):
    """Markdown of rows (dictionaries), one line each; columns: {key: heading}, or just the keys."""
    headings = columns if isinstance(columns, dict) else {key: key for key in columns}
    lines = [headings.values(), ["---"] * len(headings)]
    lines += [[_cell(row.get(key)) for key in headings] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned(rows: Sequence[Mapping], columns: Mapping[str, str] | Sequence[str]) -> str:
    """Plain text for a terminal, in columns of equal width; arguments as in `to_markdown`.

    Columns that hold nothing but numbers are right-aligned, floats have 4 significant digits.
    """
    headings = columns if isinstance(columns, Mapping) else {key: key for key in columns}
    parts = []
    for key, heading in headings.items():
        values = [row.get(key) for row in rows]
        cells = [heading, *(_rounded(v) if isinstance(v, float) else _cell(v) for v in values)]
        width = max(map(len, cells))
        numeric = all(value is None or _is_number(value) for value in values)
        cells = [cell.rjust(width) if numeric else cell.ljust(width) for cell in cells]
        parts.append([cells[0], "-" * width, *cells[1:]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*parts, strict=True))


def to_csv(rows, columns):
    """Comma-separated values of rows (dictionaries), headings first, numbers in full."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        found = (row.get(key) for key in columns)
        writer.writerow(_cell(v) if isinstance(v, dict | list) else v for v in found)
    return lines.getvalue().rstrip("\n")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: float) -> str:
    """Four significant digits; no exponent below a million."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def _cell(value):
    """Text of a value in a table: whole numbers in thousands, others to five digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
