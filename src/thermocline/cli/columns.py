"""Lay values out in columns of text. Pure."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size

GAP: Final = "  "
NARROW: Final = 12
"""A column is not made narrower than this to fit."""
PLAIN_MAX: Final = 1e15
"""Larger numbers are written with an exponent."""


def laid_out(rows: Iterable[Sequence[object]], names: Sequence[str], width: int | None) -> list[str]:
    """The table's lines: names, a rule, one line a row; numbers to the right, no spaces at the end.

    width  of the terminal: the widest columns are cut, each cut shown by …; None: nothing is cut
    """
    values = list(rows)
    numeric = [_is_numeric([row[place] for row in values]) for place in range(len(names))]
    cells = [list(names), *([cell(value) for value in row] for row in values)]
    widths = [max(cell_len(row[place]) for row in cells) for place in range(len(names))]
    if width is not None:
        widths = fitted(widths, width)
    sides = list(zip(widths, numeric, strict=True))
    lines = [GAP.join(_set(text, *side) for text, side in zip(row, sides, strict=True)).rstrip() for row in cells]
    return [lines[0], "─" * (sum(widths) + len(GAP) * (len(widths) - 1)), *lines[1:]]


def fitted(widths: Sequence[int], width: int) -> list[int]:
    """Widths that fit into `width` if they can: the widest give way first, none goes below NARROW."""
    found = list(widths)
    while sum(found) + len(GAP) * (len(found) - 1) > width and max(found) > NARROW:
        found[found.index(max(found))] -= 1
    return found


def cell(value: object) -> str:
    """A value as people read it, on one line; nothing for NULL."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float | decimal.Decimal):
        return _real(value)
    if isinstance(value, dt.datetime):
        return _moment(value)
    return plain(value).replace("\r", "").replace("\n", "⏎ ").replace("\t", " ")


def plain(value: object) -> str:
    """Text of a value no format has a form of its own for: an interval as 1 month 2 days 03:04:05."""
    months, days, nanoseconds = (getattr(value, name, None) for name in ("months", "days", "nanoseconds"))
    if isinstance(months, int) and isinstance(days, int) and isinstance(nanoseconds, int):
        parts = [f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in ((months, "month"), (days, "day")) if count]
        if nanoseconds or not parts:
            seconds, rest = divmod(abs(nanoseconds) // 1000, 1_000_000)
            sign, fraction = "-" if nanoseconds < 0 else "", f".{rest:06d}".rstrip("0").rstrip(".")
            parts.append(f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}")
        return " ".join(parts)
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def instant(value: dt.datetime) -> str:
    """RFC 3339 in UTC; without an offset when the value has none."""
    if value.tzinfo is None:
        return value.isoformat()
    return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat() + "Z"


def _moment(value: dt.datetime) -> str:
    """2026-11-20 09:41:07.25Z."""
    text = instant(value).removesuffix("Z").replace("T", " ")
    return (text.rstrip("0").rstrip(".") if "." in text else text) + ("" if value.tzinfo is None else "Z")


def _real(value: float | decimal.Decimal) -> str:
    """Three decimals from 1 up, four digits below, none that are zero."""
    if not -PLAIN_MAX < value < PLAIN_MAX and isinstance(value, float):
        return f"{value:.6g}"
    if not -1 < value < 1:
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:.4g}"


def _is_numeric(values: Sequence[object]) -> bool:
    there = [value for value in values if value is not None]
    return bool(there) and all(type(value) in (int, float, decimal.Decimal) for value in there)


def _set(text: str, size: int, right: bool) -> str:
    """`text` in exactly `size` cells."""
    if cell_len(text) > size:
        return set_cell_size(text, size - 1) + "…"
    return " " * (size - cell_len(text)) + text if right else set_cell_size(text, size)
