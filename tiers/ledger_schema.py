"""The ledger's tables (docs/formats.md, "Ledger"): the same on SQLite and PostgreSQL. Only ledger_*.py use them.

Rows per shard, segment, cold file, batch and erasure: never per event or conversation. Positions are two integers (ms, seq),
times µs since the epoch, lists JSON text. Rows of `segments`, `segment_ranges` and `cold_files` are never updated.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, MetaData, Table, Text

metadata = MetaData()


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _shard() -> Column[int]:
    return Column("shard", Integer, primary_key=True, autoincrement=False)


identity = Table("identity", metadata, Column("key", Text, primary_key=True), _text("value"))
"""format, namespace, incarnation, previous (the incarnation it replaced), shards, buckets, created_us."""

epochs = Table(
    "epochs",
    metadata,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    _text("owner"),
    _count("taken_us"),
)
"""The workers that had this ledger; the highest epoch may move events."""

shards = Table(
    "shards",
    metadata,
    _shard(),
    _count("position_ms"),
    _count("position_seq"),
    _count("events"),
    _count("bytes"),
    _count("rejected"),
    _count("observed_events"),
    _count("observed_ms"),
    _count("observed_seq"),
    _count("era"),
)

segments = Table(
    "segments",
    metadata,
    Column("segment_id", Text, primary_key=True),
    Column("level", Integer, nullable=False),
    Column("day", Text),
    _text("move_id"),
    Column("part", Integer, nullable=False),
    Column("parts", Integer, nullable=False),
    _text("inputs"),
    _count("rows"),
    _count("file_bytes"),
    _count("content_bytes"),
    _count("timestamp_min_us"),
    _count("timestamp_max_us"),
    _text("conversation_min"),
    _text("conversation_max"),
    Column("event_types", Text),
    Column("has_rollups", Boolean, nullable=False),
    _text("checksum"),
    _count("created_us"),
)

segment_ranges = Table(
    "segment_ranges",
    metadata,
    Column("segment_id", Text, primary_key=True),
    _shard(),
    _count("after_ms"),
    _count("after_seq"),
    _count("upto_ms"),
    _count("upto_seq"),
    _count("events"),
    _count("events_upto"),
    _count("bytes_upto"),
    _count("rejected_upto"),
)

cold_files = Table(
    "cold_files",
    metadata,
    Column("file_id", Text, primary_key=True),
    Column("batch_id", Text, nullable=False, index=True),
    _text("kind"),
    _text("day"),
    _text("url"),
    _count("rows"),
    _count("file_bytes"),
    _count("timestamp_min_us"),
    _count("timestamp_max_us"),
    _text("conversation_min"),
    _text("conversation_max"),
    Column("event_types", Text),
    _text("checksum"),
    _count("created_us"),
    Column("sampled_rows", BigInteger),
)

batches = Table(
    "batches",
    metadata,
    Column("batch_id", Text, primary_key=True),
    _text("day"),
    _text("kind"),
    _text("policy_hash"),
    Column("rate_min", Double, nullable=False),
    _count("events_in"),
    _count("events_kept"),
    Column("snapshot_id", Text),
    _count("committed_us"),
)
"""One row per batch (kind archive, compact or expire) that was committed."""

intents = Table(
    "intents",
    metadata,
    Column("batch_id", Text, primary_key=True),
    _text("kind"),
    _text("inputs"),
    _count("begun_us"),
)
"""Batches that were begun and are not committed yet: their inputs stay as they are until then."""

totals = Table("totals", metadata, _shard(), _count("kept"), _count("sampled_out"), _count("erased"))

losses = Table(
    "losses",
    metadata,
    _shard(),
    Column("era", BigInteger, primary_key=True, autoincrement=False),
    _count("observed"),
    _count("reported"),
    _count("at_us"),
    _text("reason"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("erasure_id", Text, primary_key=True),
    _text("rule"),
    _count("requested_us"),
    Column("done_us", BigInteger),
    _count("events"),
)

trash = Table("trash", metadata, Column("path", Text, primary_key=True), _count("left_us"), _text("move_id"))
