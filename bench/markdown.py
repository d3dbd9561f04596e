"""Rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable

from .measure import shown_count
from .results import Row

MARKS = {True: "met", False: "**missed**", None: ""}
HEAD = ("what", "events", "figure", "against", "target", "")


def markdown(rows: Iterable[Row]) -> str:
    """A table with a line per row; columns that are empty in all of them are left out."""
    lines = [_cells(row) for row in rows]
    used = [place for place, name in enumerate(HEAD) if place == 0 or any(cells[place] for cells in lines)]
    parts = [[HEAD[place] for place in used], ["---"] * len(used), *([cells[place] for place in used] for cells in lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in parts)


def _cells(row: Row) -> tuple[str, ...]:
    value = f"{row.value} ({row.note})" if row.note else row.value
    events = shown_count(row.events) if row.events else ""
    cells = (row.what, events, value, row.against, row.target, MARKS[row.met])
    return tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
