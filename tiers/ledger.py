"""Contract of the ledger: the one place that says where every event is. SQL keeps it (ledger_sql.py).

A move between tiers is one call of `settled`, `merged` or `committed`, which is one transaction: before it the events are in the
old place, after it in the new one. Every such call checks the worker's epoch and that new segments are there as stated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from thermocline.tiers.block import ORIGIN, Position


class ShardState(msgspec.Struct, frozen=True, kw_only=True):
    """What has left one shard's log for good."""

    shard: int
    position: Position = ORIGIN
    """Settled up to and including this entry."""
    events: int = 0
    """N at `position`: events that have settled, the rejected included."""
    bytes: int = 0
    """B at `position`."""
    rejected: int = 0
    """Of `events`, those that settle could not use."""
    observed_events: int = 0
    """Highest N the worker ever saw: what proves a loss after Redis came back older."""
    observed_position: Position = ORIGIN
    era: int = 0
    """Times this shard may have lost acknowledged events."""


class ShardRange(msgspec.Struct, frozen=True, kw_only=True):
    """The part of one shard's log a move covered, and how many of its events this segment holds."""

    shard: int
    after: Position
    upto: Position
    events: int
    events_upto: int
    """N at `upto`."""
    bytes_upto: int
    rejected_upto: int
    """Rejected events of the shard up to `upto`, ever."""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable DuckDB file. The same facts stand in the file itself (`segment_info`)."""

    segment_id: str
    """UUIDv7 hex; the file is segments/<segment_id>.duckdb."""
    level: int
    """How often its events were rewritten at most: 0 as settled, 3 is final."""
    day: str | None
    """YYYY-MM-DD when it holds ≥ day_rows_min rows of that one UTC day; None is mixed."""
    move_id: str
    part: int
    """1 to parts."""
    parts: int
    inputs: tuple[str, ...]
    """Segment ids the move replaced; empty for settle."""
    rows: int
    file_bytes: int
    content_bytes: int
    timestamp_min_us: int
    timestamp_max_us: int
    conversation_min: str
    conversation_max: str
    event_types: tuple[str, ...] | None
    """Sorted; None when more than 64."""
    has_rollups: bool
    checksum: str
    """`<kind>:<sum of row hashes>`: comparable between versions of DuckDB of the same kind (docs/formats.md, "Checksum")."""
    created_us: int
    ranges: tuple[ShardRange, ...]


class ColdFile(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of the cold tier. Listed in every view."""

    file_id: str
    """`<batch>-<n>`, unique within the namespace."""
    batch_id: str
    kind: str
    """events, rollup_hourly, rollup_conversation, rollup_task, rollup_quantile, rollup_decision or rollup_user."""
    day: str
    url: str
    """Where it was written; what Iceberg knows it by."""
    rows: int
    file_bytes: int
    timestamp_min_us: int
    timestamp_max_us: int
    conversation_min: str
    conversation_max: str
    event_types: tuple[str, ...] | None
    checksum: str
    """SHA-256 of its bytes."""
    created_us: int
    sampled_rows: int | None = None
    """Rows with a sample_rate below 1; None in files of a version that did not count them."""

    @property
    def key(self) -> str:
        """The object's key: where it is in the cold folder, wherever that has been moved to since."""
        return f"{self.kind}/day={self.day}/{self.file_id}.parquet"


class ShardTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Per shard, events that left warm: what conservation adds to hot + warm."""

    shard: int
    kept: int = 0
    sampled_out: int = 0
    erased: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One move into or within the cold tier. The object `batches/<batch_id>.json` holds it too, so that the cold tier says of
    itself what it is made of."""

    format: str
    batch_id: str
    """UUIDv7 hex."""
    kind: str
    """archive: segments become files; compact: files become fewer; expire: files leave."""
    day: str
    """The earliest day of its events."""
    policy_hash: str
    rate_min: float
    """The lowest sample rate in it; 1 when nothing was sampled out."""
    events_in: int
    """Events it moves: those of its inputs that are in none of `rest`, or those of `removed`."""
    events_kept: int
    inputs: tuple[str, ...] = ()
    """Ids of the segments it replaces."""
    rest: tuple[Segment, ...] = ()
    """Segments written with it: events of its inputs that are too young to be archived."""
    removed: tuple[str, ...] = ()
    """Ids of the cold files it replaces."""
    files: tuple[ColdFile, ...]
    totals: tuple[ShardTotals, ...]
    """What it adds to the totals, by shard."""
    ranges: tuple[ShardRange, ...] = ()
    """The hull of its inputs' ranges, by shard: how far the logs had settled."""
    created_us: int


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger keeps of a committed batch."""

    batch_id: str
    kind: str
    day: str
    policy_hash: str
    rate_min: float
    events_in: int
    events_kept: int
    snapshot_id: str | None
    """Of the Iceberg table of events; None when it has no such snapshot."""
    committed_us: int


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was begun: until it is committed or given up, nothing else moves its inputs."""

    batch_id: str
    kind: str
    inputs: tuple[str, ...]
    """Segment ids, or cold file ids, that it replaces."""
    begun_us: int


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A declared loss: acknowledged events of one shard that Redis no longer has."""

    shard: int
    era: int
    """The era that began with it."""
    observed: int
    """Events the worker had seen and Redis lacks."""
    reported: int
    """Events producers had receipts for and Redis lacks; the sum over producers."""
    at_us: int
    reason: str

    @property
    def events(self) -> int:
        return max(self.observed, self.reported)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A reader's cut: one short read transaction, fetched whole."""

    format: str
    incarnation: str
    epoch: int
    shards: tuple[ShardState, ...]
    segments: tuple[Segment, ...]
    files: tuple[ColdFile, ...]
    totals: tuple[ShardTotals, ...]
    losses: tuple[Loss, ...]
    whole_batches: frozenset[str] = frozenset()
    """Batches of which nothing was sampled out: their files hold every event."""


class Trash(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """Relative to the namespace folder; of a cold file `cold://<key>`."""
    left_us: int
    move_id: str


class Ledger(Protocol):
    """Errors: TierUnavailable (cannot be opened, locked for 30 s), TierCorrupt (unknown format), LeaseHeld (old epoch)."""

    def create(self, *, incarnation: str, shards: int, buckets: int, now_us: int) -> None:
        """Make a new ledger's tables and identity; nothing happens if it has them."""

    def identity(self) -> Mapping[str, str] | None:
        """format, incarnation, shards, buckets, created_us; None for a ledger not created yet."""

    def view(self) -> View: ...

    def take_epoch(self, owner: str, now_us: int) -> int:
        """Start a new epoch for `owner`; every older one is refused from here on."""

    def owner(self) -> str | None:
        """Who took the current epoch."""

    def settled(self, epoch: int, segment: Segment | None, shards: Sequence[ShardState], *, now_us: int) -> None:
        """The move hot → warm: the segment (None when every line was rejected) and the shards' new states."""

    def merged(self, epoch: int, inputs: Sequence[str], outputs: Sequence[Segment], *, now_us: int) -> None:
        """The move warm → warm: all `inputs` must be live, else TierCorrupt; they go to trash."""

    def rebuilt(self, epoch: int, damaged: str, segment: Segment) -> None:
        """Put a segment with the same rows and ranges in the place of a damaged one, whose file its caller keeps. Safe to
        repeat."""

    def intend(self, epoch: int, intent: Intent) -> None:
        """Say that a batch is begun. TierCorrupt when another one has an input of it."""

    def intents(self) -> list[Intent]: ...

    def give_up(self, epoch: int, batch_id: str) -> None:
        """Forget a batch that was begun and of which nothing is visible to anyone."""

    def committed(self, epoch: int, batch: Batch, *, snapshot_id: str | None, now_us: int) -> None:
        """The move of a batch: what it replaces goes to trash, its files and its rest are listed, its totals are added, its
        intent is done. TierCorrupt unless all it replaces is live and as many events come out as went in. Safe to repeat."""

    def batches(self) -> list[BatchRow]:
        """Committed batches, oldest first."""

    def observed(self, shards: Mapping[int, tuple[int, Position]], *, eras: Mapping[int, int] | None = None, now_us: int) -> None:
        """Record the highest N and last position seen per shard; never goes back. `eras`: what the shards were in when seen;
        one that was confirmed anew since is left alone."""

    def confirmed(
        self, *, incarnation: str, eras: Mapping[int, int], losses: Sequence[Loss], now_us: int, run_id: str = ""
    ) -> None:
        """After a Redis restart: the incarnation now valid, new eras, losses declared; observed_* starts from settled. `run_id`
        is the server this was decided for, kept in the identity as `run`."""

    def losses_reported(self, reported: Mapping[tuple[int, int], int]) -> None:
        """(shard, era) → events producers reported gone; raises a Loss' `reported`, never lowers it."""

    def trash(self) -> list[Trash]: ...

    def purged(self, epoch: int, paths: Iterable[str]) -> None:
        """Forget trash rows whose files are gone."""

    def rebuild(
        self,
        *,
        incarnation: str,
        shards: Sequence[ShardState],
        segments: Sequence[Segment],
        batches: Sequence[Batch] = (),
        buckets: int,
        now_us: int,
    ) -> None:
        """Fill an empty ledger from what segments and batches say of themselves. `batches`: those that count, in any order; files
        that another of them removed are not listed."""

    def checkpoint(self) -> int:
        """Fold the write-ahead log into the database; its size in bytes afterwards."""

    def close(self) -> None: ...
