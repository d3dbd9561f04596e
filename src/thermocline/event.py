"""The one record everything is about: the event, its columns and its limits. Pure data, no behaviour."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

FORMAT: Final = "1"
"""Version of every format in docs/formats.md. A process stops at one it does not know."""

EVENT_BYTES_MAX: Final = 1 << 20
METADATA_BYTES_MAX: Final = 64 << 10
CONVERSATION_ID_BYTES_MAX: Final = 256
NAME_BYTES_MAX: Final = 256
JSON_DEPTH_MAX: Final = 64
INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
TIMESTAMP_MIN_US: Final = 946_684_800_000_000
"""2000-01-01T00:00:00Z in µs since the epoch: what is older is a wrong unit, not an old event."""
CLOCK_AHEAD_MAX_US: Final = 5 * 60 * 1_000_000
"""How far a timestamp may lie after Redis' clock."""


class Column(NamedTuple):
    """One column of `events`, the same in every tier."""

    name: str
    sql_type: str
    """DuckDB type in a segment."""
    field_id: int
    """Iceberg and Parquet field id. Never reused, never renumbered."""
    nullable: bool
    in_line: bool
    """Whether the column is a key of a block's NDJSON lines."""
    line_type: str
    """DuckDB type the key is parsed as; empty when not in the line."""


COLUMNS: Final[tuple[Column, ...]] = (
    Column("event_id", "UUID", 1, False, True, "VARCHAR"),
    Column("conversation_id", "VARCHAR", 2, False, False, ""),
    Column("seq", "BIGINT", 3, False, False, ""),
    Column("event_type", "VARCHAR", 4, False, True, "VARCHAR"),
    Column("timestamp", "TIMESTAMPTZ", 5, False, True, "BIGINT"),
    Column("ingested_at", "TIMESTAMPTZ", 6, False, False, ""),
    Column("agent_id", "VARCHAR", 7, True, True, "VARCHAR"),
    Column("task_id", "VARCHAR", 8, True, True, "VARCHAR"),
    Column("correlation_id", "VARCHAR", 9, True, True, "VARCHAR"),
    Column("parent_id", "VARCHAR", 10, True, True, "VARCHAR"),
    Column("model", "VARCHAR", 11, True, True, "VARCHAR"),
    Column("tool_name", "VARCHAR", 12, True, True, "VARCHAR"),
    Column("status", "VARCHAR", 13, True, True, "VARCHAR"),
    Column("duration_ms", "DOUBLE", 14, True, True, "DOUBLE"),
    Column("cost_usd", "DOUBLE", 15, True, True, "DOUBLE"),
    Column("input_tokens", "BIGINT", 16, True, True, "BIGINT"),
    Column("output_tokens", "BIGINT", 17, True, True, "BIGINT"),
    Column("content", "VARCHAR", 18, False, True, "VARCHAR"),
    Column("metadata", "JSON", 19, True, True, "VARCHAR"),
    Column("sample_rate", "DOUBLE", 20, False, False, ""),
)
COLUMN_NAMES: Final = tuple(column.name for column in COLUMNS)
NULLABLE_COLUMNS: Final = tuple(column.name for column in COLUMNS if column.nullable)
"""Order of the NULL counts in a block's header (docs/formats.md)."""

TextId = str | UUID
Metadata = dict[str, Any] | str | bytes | msgspec.Raw


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing an agent did, as the caller gives it: what `append` takes and a line of NDJSON holds.

    timestamp  when it happened: an aware datetime, µs since the epoch, or RFC 3339 text; None means now
    metadata   a dict, or a JSON object as text or bytes, which is kept byte for byte
    event_id   the caller's own id; None derives one from the place the event is stored at
    """

    conversation_id: str
    event_type: str
    content: str | None = ""
    task_id: str | None = None
    agent_id: str | None = None
    correlation_id: str | None = None
    parent_id: str | None = None
    model: str | None = None
    tool_name: str | None = None
    status: str | None = None
    duration_ms: float | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    metadata: Metadata | None = None
    timestamp: datetime | int | str | None = None
    event_id: TextId | None = None


Durability: TypeAlias = Literal["memory", "fsync", "replicated"]
"""How firmly an event is kept: in Redis' memory; on its disk; in the memory of replicas too."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an append gives back: the event's place and how firmly it is kept."""

    event_id: str
    conversation_id: str
    seq: int
    """Number within the conversation, from 1; for a duplicate, that of the first copy."""
    durability: str
    """memory (acknowledged from memory; on disk within 2 s under `everysec`), fsync, or replicated."""
    duplicate: bool = False
