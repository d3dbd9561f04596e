"""Contract of the hot tier: the log of blocks that producers append to and settle reads. Redis keeps it (hot_redis.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import pyarrow as pa

from thermocline.event import Durability
from thermocline.tiers.block import Block, Position

BLOCKS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("position_ms", pa.int64(), nullable=False),
        pa.field("position_seq", pa.int64(), nullable=False),
        pa.field("conversation_id", pa.string(), nullable=False),
        pa.field("seq_first", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),  # lines that are events: not skipped
        pa.field("events_total", pa.int64(), nullable=False),  # N
        pa.field("bytes_total", pa.int64(), nullable=False),  # B
        pa.field("ingested_us", pa.int64(), nullable=False),
        pa.field("block_id", pa.string(), nullable=False),
        pa.field("sizes", pa.list_(pa.int64()), nullable=False),  # content, metadata bytes, NULL counts
        pa.field("skip", pa.list_(pa.int64()), nullable=True),  # 0-based ordinals
        pa.field("payload", pa.string(), nullable=False),
        pa.field("fault", pa.string(), nullable=True),  # why the whole block is rejected; its payload is then base64
    ]
)
"""Blocks as read back, one row each, in log order within a shard."""
BlockLists = Mapping[str, Sequence[Any]]
"""The same as lists, by the name of the column."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What the append script answered for one block (docs/formats.md, "Append script")."""

    code: str
    """OK, DUP, VOID, OLD, GAP, CONFLICT, BUSY, CLOCK, INC, UNCONFIRMED or FORMAT; FULL when Redis is out of memory."""
    seq_first: int = 0
    position: str = ""
    events_total: int = 0
    era: int = 0
    skipped: Mapping[int, int] = {}
    """ordinal → seq of the first copy, for caller-given ids seen before."""
    detail: int = 0
    """GAP, OLD: the last number taken. CONFLICT: the last seq. CLOCK: Redis' time, µs."""


class Newest(NamedTuple):
    """What Redis still has of a conversation's newest events."""

    head: int
    """The conversation's last seq; 0 when it has none."""
    shard_state: tuple[bytes | None, bytes | None]
    """Incarnation and era. While it is the same, what is at a position never changes."""
    trimmed: Position
    """Up to here the log is gone."""
    blocks: BlockLists
    """Oldest first. Usually enough for what was asked, never a promise."""
    joined: bool
    """Whether the blocks follow the one at the position asked for, with none between."""


class AppendSession(Protocol):
    """One connection of one producer. Not thread-safe. Errors: TierUnavailable when nothing can have been stored,
    OutcomeLost when the reply is missing."""

    incarnation: str
    durability: str

    def send(self, producer: str, requests: Sequence[tuple[Block, int, int | None]], *, deadline_s: float) -> list[Reply]:
        """Send (block, number, expected_seq) in order, one round trip; one reply each."""

    def void(self, producer: str, sent: Sequence[tuple[Block, int]], *, deadline_s: float) -> list[Reply]:
        """Of (block, number) sent before, in order, one reply each: DUP when it is stored, else VOID or GAP, and then it never
        will be, however late its request arrives. UNCONFIRMED, INC, FORMAT: nothing is known."""

    def report_loss(self, producer: str, era: int, losses: Mapping[int, int]) -> None:
        """Tell the store that acknowledged events (shard → count) are gone since the era began. Safe to repeat."""

    def last_numbers(self, producer: str, shards: Iterable[int]) -> dict[int, int]:
        """shard → last number the store knows of this producer, 0 when none."""

    def reconnect(self) -> None:
        """Close and open again, and read the incarnation anew."""

    def close(self) -> None: ...


class OutcomeLost(Exception):
    """Internal: a request was sent and its reply never came. Ingest turns it into a resend or OutcomeUnknown."""


class ShardCut(msgspec.Struct, frozen=True, kw_only=True):
    """One shard's counters at one instant."""

    shard: int
    incarnation: str
    era: int
    events_total: int
    bytes_total: int
    last: Position
    trimmed: Position
    trimmed_bytes: int
    entries: int
    """Blocks still in the log."""
    newest_us: int = 0
    """ingested_at of the last block there ever was; 0 when a version wrote it that did not note that."""


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    run_id: str
    maxmemory_policy: str
    maxmemory: int
    used_memory: int
    append_only: bool
    append_fsync: str
    """always, everysec or no."""
    disk_ok: bool
    """False while an fsync is pending or put off (no-appendfsync-on-rewrite), or the last write failed."""
    write_ok: bool
    """False when the last write to the append-only file failed: a person has to look at the disk."""
    waits_for_disk: bool
    """Whether it has WAITAOF and a file to wait for."""
    replicas: int
    """Connected now."""
    now_us: int


class Hot(Protocol):
    """Reads are safe from any process. `trim` is the worker's."""

    shards: int

    def facts(self) -> ServerFacts: ...

    def cut(self) -> tuple[ShardCut, ...]:
        """All shards at one instant, by shard number."""

    def trimmed(self) -> tuple[Position, ...]:
        """Trimmed position of each shard, now."""

    def page(self, shard: int, after: Position, upto: Position, *, bytes_max: int) -> pa.Table:
        """Blocks in (after, upto], BLOCKS_SCHEMA, log order: at least one if there is one, about `bytes_max` payload
        at most. Checksums are verified: a bad block comes with `fault` set."""

    def first_us(self, shard: int, after: Position) -> int | None:
        """ingested_at of the first block after `after` that the log has; None when there is none."""

    def head(self, conversation_id: str) -> int:
        """The conversation's last seq; 0 when it has none."""

    def trim(self, shard: int, upto: Position | None, *, settled_events: int, settled_bytes: int, others_bytes: int) -> int:
        """Drop entries up to and including `upto` (None: none) and tell the shard what is settled; entries dropped."""

    def reported_losses(self) -> dict[tuple[int, int, str], int]:
        """(shard, era, producer) → acknowledged events that producer found gone."""

    def recent(self, conversation_id: str, limit: int, after: Position | None = None) -> Newest:
        """The newest `limit` events of a conversation that are still cached.

        after  of a block of the conversation that the caller has: only what came later is read
        """

    def session(self, durability: Durability = "memory") -> AppendSession:
        """A new one, whose answers mean that a block is kept as firmly as that, at least. ConfigError, when it connects, if this
        server cannot promise it."""

    def drop(self) -> int:
        """Delete every key of the namespace; keys deleted."""

    def close(self) -> None: ...
