"""Contract of the warm tier: immutable segments in one folder. DuckDB files keep them (warm_duckdb.py).

Writing a segment: `<id>.tmp` is created, filled, checkpointed and closed; opened again read-only and compared with what went in;
fsynced; renamed to `<id>.duckdb`; the folder fsynced. A crash before the rename leaves a .tmp file (an orphan), after it
a segment the ledger does not list (an orphan too, unless `recover` finds its move complete).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
import pyarrow as pa

from thermocline.tiers.ledger import Segment, ShardRange, ShardState
from thermocline.tiers.steps import Reach, unheard


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """One line (or block, ordinal -1) that settle could not use."""

    shard: int
    position: str
    ordinal: int
    conversation_id: str
    reason: str
    line: str
    events: int = 1


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    segment: Segment | None
    """None when no line was usable."""
    rejected: tuple[Rejected, ...]


class Warm(Protocol):
    """Only the worker writes; anyone reads. Errors: TierUnavailable (no space, no permission), TierCorrupt.

    `reach` is told every step of writing a segment, before and after it.
    """

    def path(self, segment_id: str) -> str:
        """Absolute path of a segment's file."""

    def write_settled(
        self, blocks: pa.Table, before: Sequence[ShardState], *, move_id: str, created_us: int, reach: Reach = unheard
    ) -> Settled:
        """Write `blocks` (hot.BLOCKS_SCHEMA, every shard contiguous after its state in `before`) as one segment."""

    def write_merged(
        self, inputs: Sequence[Segment], *, level: int, move_id: str, created_us: int, reach: Reach = unheard
    ) -> list[Segment]:
        """Write the rows of `inputs` again, split by day (≥ day_rows_min rows) and by conversation range
        (≤ segment_rows_max rows); the rest as mixed. Order: day, then conversation."""

    def write_rest(
        self, inputs: Sequence[Segment], *, from_us: int, level: int, move_id: str, created_us: int, reach: Reach = unheard
    ) -> list[Segment]:
        """Write the rows of `inputs` again whose timestamp is `from_us` or later, split like a merge; [] when there are none."""

    def read_info(self, segment_id: str) -> Segment:
        """What a file says of itself. TierCorrupt if it cannot be opened."""

    def check(self, segment: Segment, *, deep: bool) -> list[str]:
        """What is wrong with a segment's file, one line each; deep recomputes the checksum."""

    def stored(self) -> list[str]:
        """Ids of the segment files that are there."""

    def last_seqs(self, segments: Sequence[Segment]) -> Iterator[pa.RecordBatch]:
        """(conversation_id, seq): the highest seq of every conversation, for rebuilding heads."""

    def bytes_used(self) -> int: ...


__all__ = ["Rejected", "Segment", "Settled", "ShardRange", "Warm"]
