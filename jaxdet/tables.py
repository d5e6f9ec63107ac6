"""Tables as text: Markdown to read, comma-separated values for a spreadsheet."""

import csv
import io


def to_markdown(rows, columns):
    """Markdown of rows (dictionaries), one line each; columns: {key: heading}, or just the keys."""
    headings = columns if isinstance(columns, dict) else {key: key for key in columns}
    lines = [headings.values(), ["---"] * len(headings)]
    lines += [[_cell(row.get(key)) for key in headings] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(rows, columns):
    """Comma-separated values of rows (dictionaries), headings first, numbers in full."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        found = (row.get(key) for key in columns)
        writer.writerow(_cell(v) if isinstance(v, dict | list) else v for v in found)
    return lines.getvalue().rstrip("\n")


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
