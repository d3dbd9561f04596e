"""What is handed to a process that answers a query in another one's place. Pure, and light: that process imports it."""

from __future__ import annotations

from typing import Final

import msgspec

from thermocline.event import COLUMNS

SCHEMA: Final = "memory.tail"
TAIL: Final = f"{SCHEMA}.events"
"""The table that the other process keeps the unsettled events in."""
TAIL_COLUMNS: Final = ", ".join(f"{column.name} {column.sql_type}" for column in COLUMNS)


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a query reads, but for the unsettled events, which are too many for one message."""

    segments: dict[str, str]
    """Name to attach it under → path of a DuckDB file."""
    files: tuple[str, ...]
    """Paths of the Parquet files that the relations read."""
    relations: dict[str, str]
    """Name → SELECT over TAIL, segments and files."""
    sampled: tuple[str, ...] = ()
    """Of these relations, those of which rows are missing."""
