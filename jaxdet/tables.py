"""Tables as text: Markdown, aligned columns for a terminal, comma-separated values.

Rows are dictionaries.  `columns` are the keys to show, or a dictionary {key: heading}.  The cell of
a missing value is empty.
"""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxdet.errors import printable

Columns = Mapping[str, str] | Iterable[str]


def to_markdown(rows: Iterable[Mapping[str, Any]], columns: Columns) -> str:
    """A Markdown table; integers have thousands separators, floats five significant digits."""
    shown = headings(columns)
    lines = [shown.values(), ["---"] * len(shown)]
    lines += [[_cell(row.get(key)) for key in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """A table in plain text with aligned columns; columns of numbers are right-aligned.

    Floats have four significant digits or, from 1,000 to a million, no digits after the point.
    """
    parts = []
    for key, heading in headings(columns).items():
        values = [row.get(key) for row in rows]
        cells = [printable(cell) for cell in (heading, *map(cell_text, values))]
        width = max(map(len, cells))
        numeric = all(value is None or is_number(value) for value in values)
        cells = [cell.rjust(width) if numeric else cell.ljust(width) for cell in cells]
        parts.append([cells[0], "-" * width, *cells[1:]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*parts, strict=True))


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Collection[str]) -> str:
    """Comma-separated values with a header line of the keys; numbers in full precision."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(key) for key in columns)
        writer.writerow(_cell(v) if isinstance(v, dict | list) else v for v in values)
    return lines.getvalue().rstrip("\n")


def headings(columns: Columns) -> dict[str, str]:
    """The heading of each column, {key: heading}."""
    return dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}


def label_table(scores: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (rows, columns) of a table with the scores of each label.

    If the scores include a confusion matrix, the row of a label also has its row of the matrix.
    """
    labels = scores["labels"]
    rows = [{"label": name, **of_label} for name, of_label in labels.items()]
    columns = dict.fromkeys(key for row in rows for key in row)
    if "confusion" in scores:
        columns = [key for key in columns if key not in ("count", "correct")]
        columns += [f"as {name}" for name in labels]
        for row, counts in zip(rows, scores["confusion"], strict=True):
            row |= {f"as {name}": count for name, count in zip(labels, counts, strict=True)}
    return rows, list(columns)


def range_text(*ends: float) -> str:
    """The two ends of an interval with four significant digits; "" without ends."""
    return " to ".join(f"{end:.4g}" for end in ends)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell_text(value: Any) -> str:
    """The text of a value in a table for people; floats have four significant digits."""
    return _rounded(value) if isinstance(value, float) else _cell(value)


def _rounded(value: float) -> str:
    """A float with four significant digits or, from 1,000 to a million, as an integer."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def _cell(value) -> str:
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
