"""The three relations of a query as SQL text: `events`, `hourly_stats`, `conversation_summary`. Pure: nothing is run here.

`events` is the hot tail ∪ segments ∪ cold files, one row per event, event_id and metadata as text. The other two come from the
rollups segments carry, and from the events of what has none: small level-0 segments and the tail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from thermocline.errors import QueryRefused
from thermocline.event import COLUMNS
from thermocline.tiers import rollups
from thermocline.tiers.duck import quoted
from thermocline.tiers.ledger import ColdFile, Segment

from .attached import alias
from .tail import EMPTY, Chunk

_AS_TEXT: Final = ("event_id", "metadata")
COLUMNS_SQL: Final = ", ".join(
    f"{column.name}::VARCHAR AS {column.name}" if column.name in _AS_TEXT else column.name for column in COLUMNS
)
"""The select list of `events`."""
_RAW_COLUMNS: Final = ", ".join(column.name for column in COLUMNS)
_FILE_KINDS: Final = {
    "events": ("events",),
    "hourly_stats": ("rollup_hourly",),
    "conversation_summary": ("rollup_conversation", "rollup_task"),
}
NAMES: Final = tuple(_FILE_KINDS)


class Sources(msgspec.Struct, frozen=True):
    """What one relation reads besides the tail: segments and cold files."""

    segments: tuple[Segment, ...] = ()
    files: tuple[ColdFile, ...] = ()

    @classmethod
    def of(cls, relation: str, segments: Iterable[Segment], files: Iterable[ColdFile]) -> Sources:
        """The sources of `relation` among these."""
        kinds = _FILE_KINDS[relation]
        return cls(tuple(segments), tuple(file for file in files if file.kind in kinds))

    @property
    def sampled_rows(self) -> int:
        """Rows that stand for others too: archived events. Rollups are made before sampling."""
        return sum(file.rows for file in self.files if file.kind == "events")


def tail_sql(chunks: Iterable[Chunk]) -> str:
    """The SELECT of all rows of the tail. A view of its own, so that a new chunk does not mean new views over all segments."""
    return " UNION ALL ".join(f"SELECT {_RAW_COLUMNS} FROM {table}" for table in (EMPTY, *(chunk.table for chunk in chunks)))


def relation_sql(relation: str, sources: Sources, *, tail: str) -> str:
    """The SELECT that is `relation` over `sources` and the view `tail`."""
    if relation == "events":
        return f"SELECT {COLUMNS_SQL} FROM ({_union(tail, sources.segments, sources.files)})"
    if sources.files:
        raise QueryRefused(f"{relation}: this version does not read the rollups of archived days ({sources.files[0].url})")
    rolled = [alias(segment.segment_id) for segment in sources.segments if segment.has_rollups]
    plain = [segment for segment in sources.segments if not segment.has_rollups]
    raw = [f"(SELECT {_RAW_COLUMNS} FROM ({_union(tail, plain, ())}))"]
    return rollups.hourly_stats(rolled, raw) if relation == "hourly_stats" else rollups.conversation_summary(rolled, raw)


def _union(tail: str, segments: Sequence[Segment], files: Sequence[ColdFile]) -> str:
    """All rows; by name, so that what an older format lacks is NULL. The tail comes first: it has every column."""
    parts = [f"FROM {tail}", *(f"FROM {alias(segment.segment_id)}.events" for segment in segments)]
    if files:
        urls = ", ".join(quoted(file.url.removeprefix("file://")) for file in files)
        parts.append(f"FROM read_parquet([{urls}], union_by_name = true, hive_partitioning = false)")
    return " UNION ALL BY NAME ".join(parts)
