"""Segments as the ledger sees them, made up for tests: a file of the stated size, and facts that fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import uuid_utils

from thermocline.tiers.block import Position
from thermocline.tiers.ledger import ColdFile, Segment, ShardRange, ShardState
from thermocline.tiers.ledger_sql import SqlLedger

FILE_BYTES = 64
DAY_US = 86_400_000_000


def new_id() -> str:
    return uuid_utils.uuid7().hex


def advanced(state: ShardState, events: int, *, rejected: int = 0) -> ShardState:
    """`state` after `events` more have settled, `rejected` of them unusable."""
    return msgspec.structs.replace(
        state,
        position=Position(state.position.ms + events, 0),
        events=state.events + events,
        bytes=state.bytes + 100 * events,
        rejected=state.rejected + rejected,
    )


def covering(before: Sequence[ShardState], after: Sequence[ShardState]) -> tuple[ShardRange, ...]:
    """The ranges of the settle that takes `before` to `after`."""
    return tuple(
        ShardRange(
            shard=new.shard,
            after=old.position,
            upto=new.position,
            events=new.events - old.events - new.rejected + old.rejected,
            events_upto=new.events,
            bytes_upto=new.bytes,
            rejected_upto=new.rejected,
        )
        for old, new in zip(before, after, strict=True)
    )


def segment(
    ranges: Sequence[ShardRange] = (),
    *,
    rows: int | None = None,
    level: int = 0,
    day: str | None = None,
    move_id: str | None = None,
    part: int = 1,
    parts: int = 1,
    inputs: Sequence[str] = (),
    segment_id: str | None = None,
    file_bytes: int = FILE_BYTES,
    created_us: int = 0,
    event_types: tuple[str, ...] | None = ("output.chunk", "tool.call"),
) -> Segment:
    rows = sum(part.events for part in ranges) if rows is None else rows
    return Segment(
        segment_id=segment_id or new_id(),
        level=level,
        day=day,
        move_id=move_id or new_id(),
        part=part,
        parts=parts,
        inputs=tuple(inputs),
        rows=rows,
        file_bytes=file_bytes,
        content_bytes=10 * rows,
        timestamp_min_us=DAY_US,
        timestamp_max_us=2 * DAY_US - 1,
        conversation_min="a",
        conversation_max="z",
        event_types=event_types,
        has_rollups=level > 0,
        checksum="c0ffee:340282366920938463463374607431768211455",
        created_us=created_us,
        ranges=tuple(ranges),
    )


def merged_from(inputs: Sequence[Segment], *, level: int, shares: Sequence[Mapping[int, int]]) -> list[Segment]:
    """The outputs of a merge: `shares` gives, for every part, shard → events."""
    move_id = new_id()
    last: dict[int, ShardRange] = {}
    for part in sorted((part for source in inputs for part in source.ranges), key=lambda part: part.upto):
        first = last.get(part.shard, part)
        last[part.shard] = msgspec.structs.replace(part, after=min(first.after, part.after))
    return [
        segment(
            [msgspec.structs.replace(whole, events=share.get(shard, 0)) for shard, whole in sorted(last.items())],
            level=level,
            move_id=move_id,
            part=number,
            parts=len(shares),
            inputs=[source.segment_id for source in inputs],
        )
        for number, share in enumerate(shares, start=1)
    ]


def write_files(folder: Path, segments: Sequence[Segment]) -> None:
    """Put a file of the stated size where the ledger looks for each segment."""
    (folder / "segments").mkdir(parents=True, exist_ok=True)
    for made in segments:
        (folder / "segments" / f"{made.segment_id}.duckdb").write_bytes(b"x" * made.file_bytes)


def settle(ledger: SqlLedger, folder: Path, epoch: int, *events: int) -> Segment:
    """Settle `events[shard]` more of each shard, for real."""
    before = ledger.view().shards[: len(events)]
    after = [advanced(state, count) for state, count in zip(before, events, strict=True)]
    made = segment(covering(before, after))
    write_files(folder, [made])
    ledger.settled(epoch, made, after, now_us=100)
    return made


def cold_file(batch_id: str, number: int, rows: int, *, kind: str = "events") -> ColdFile:
    """A file that the ledger lists."""
    return ColdFile(
        file_id=f"{batch_id}-{number}",
        batch_id=batch_id,
        kind=kind,
        day="2026-11-13",
        url=f"file:///cold/{batch_id}-{number}.parquet",
        rows=rows,
        file_bytes=9,
        timestamp_min_us=1,
        timestamp_max_us=2,
        conversation_min="a",
        conversation_max="b",
        event_types=("error",),
        checksum="5",
        created_us=number,
    )
