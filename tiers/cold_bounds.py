"""The bounds of a cold file, noted while its rows stream by: what the ledger says of it so that queries can pass over it, or tell
what is sampled without reading it."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from .segment_file import EVENT_TYPES_MAX

_COLUMNS: Final = {
    "events": ("timestamp", "timestamp", True),
    "rollup_hourly": ("timestamp_min", "timestamp_max", True),
    "rollup_conversation": ("started_at", "ended_at", True),
    "rollup_task": ("", "", True),
    "rollup_quantile": ("hour", "hour", False),
    "rollup_decision": ("started_at", "started_at", True),
    "rollup_user": ("hour", "hour", False),
}
"""Kind → (column with the least time, column with the greatest, whether it has conversations)."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Inclusive. Without a column of times the start of the day, without conversations empty names."""

    timestamp_min_us: int
    timestamp_max_us: int
    conversation_min: str
    conversation_max: str
    event_types: tuple[str, ...] | None
    """All there are; None when they are too many, or the kind has none."""
    sampled_rows: int
    """Those with a sample_rate below 1."""


class BoundsOf:
    """Bounds of the rows of one kind and day that were added so far."""

    def __init__(self, kind: str, day: str) -> None:
        self._first, self._last, self._named = _COLUMNS[kind]
        self._day_us = int(dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC).timestamp() * 1e6)
        self._times: list[int] = []
        self._names: list[str] = []
        self._types: set[str] = set()
        self._sampled_rows = 0

    def add(self, rows: pa.Table) -> None:
        """rows  at least one, with the columns of the kind"""
        if self._first:
            least, most = pc.min_max(rows[self._first]), pc.min_max(rows[self._last])
            self._times = _ends([*self._times, least["min"].cast(pa.int64()).as_py(), most["max"].cast(pa.int64()).as_py()])
        if self._named:
            found: Any = pc.min_max(rows["conversation_id"]).as_py()
            self._names = _ends([*self._names, found["min"], found["max"]])
        if "event_type" in rows.column_names and len(self._types) <= EVENT_TYPES_MAX:
            self._types.update(pc.unique(rows["event_type"]).to_pylist())
        if "sample_rate" in rows.column_names:
            self._sampled_rows += pc.sum(pc.less(rows["sample_rate"], 1.0)).as_py()

    def bounds(self) -> Bounds:
        first, last = self._times or (self._day_us, self._day_us)
        lowest, highest = self._names or ("", "")
        few = 0 < len(self._types) <= EVENT_TYPES_MAX
        return Bounds(
            timestamp_min_us=first,
            timestamp_max_us=last,
            conversation_min=lowest,
            conversation_max=highest,
            event_types=tuple(sorted(self._types)) if few else None,
            sampled_rows=self._sampled_rows,
        )


def _ends(values: list[Any]) -> list[Any]:
    return [min(values), max(values)]
