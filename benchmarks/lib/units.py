"""Markdown tables of measurements: three significant digits and SI units."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdet import tables

PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
# {key of the rows: heading, or (heading, unit)}; the unit "" gives a prefix alone: 27.1 k
Columns = Mapping[str, str | tuple[str, str]]


def markdown_table(rows: Iterable[Mapping[str, Any]], columns: Columns) -> str:
    """Markdown table of rows; integers are printed in full, with thousands separators.

    A column without any value is left out.
    """
    rows = list(rows)
    used = {key: c for key, c in columns.items() if any(row.get(key) is not None for row in rows)}
    headings = {key: c if isinstance(c, str) else c[0] for key, c in used.items()}
    units = {key: None if isinstance(c, str) else c[1] for key, c in used.items()}
    cells = [{key: _cell(row.get(key), unit) for key, unit in units.items()} for row in rows]
    return tables.to_markdown(cells, headings)


def format_quantity(value: float, unit: str) -> str:
    """A number with an SI prefix: 0.0017003 "s" is "1.70 ms". From 1 s on there is no prefix."""
    if not value or not math.isfinite(value):
        return f"{value:g} {unit}".strip()
    exponent = _exponent(value)
    if unit == "s" and exponent >= 3:
        return f"{value:,.0f} s"
    power = min(max(3 * (exponent // 3), min(PREFIXES)), max(PREFIXES))
    digits = max(2 - exponent + power, 0)
    return f"{value / 10**power:.{digits}f} {PREFIXES[power]}{unit}".strip()


def format_number(value: float) -> str:
    """A number without a unit: 0.0441, 1.08, 103; below 0.0001 and from 1000 with an exponent."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    exponent = _exponent(value)
    return f"{value:.{2 - exponent}f}" if -4 <= exponent < 3 else f"{value:.2e}"


def _exponent(value: float) -> int:
    """Decimal exponent of a number, after rounding to three significant digits."""
    return int(f"{value:.2e}".partition("e")[2])


def _cell(value: Any, unit: str | None) -> Any:
    if isinstance(value, bool | None) or not isinstance(value, float | int):
        return value
    if unit is not None:
        return format_quantity(value, unit)
    return format_number(value) if isinstance(value, float) else value
