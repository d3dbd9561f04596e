"""Rows of the ledger's tables as structs, and back. Only ledger_sql.py uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from . import ledger_schema as schema
from .block import Position
from .ledger import Batch, BatchRow, ColdFile, Intent, Loss, Segment, ShardRange, ShardState, ShardTotals

Row = Mapping[str, Any]
FETCH_MAX = 200
"""Ids asked for by name; beyond it the whole table is read."""


def shard_row(state: ShardState) -> dict[str, Any]:
    return {
        "shard": state.shard,
        "position_ms": state.position.ms,
        "position_seq": state.position.seq,
        "events": state.events,
        "bytes": state.bytes,
        "rejected": state.rejected,
        "observed_events": state.observed_events,
        "observed_ms": state.observed_position.ms,
        "observed_seq": state.observed_position.seq,
        "era": state.era,
    }


def read_shards(con: sa.Connection) -> dict[int, ShardState]:
    """Every shard's state, by number."""
    return {
        row[0]: ShardState(
            shard=row[0],
            position=Position(row[1], row[2]),
            events=row[3],
            bytes=row[4],
            rejected=row[5],
            observed_events=row[6],
            observed_position=Position(row[7], row[8]),
            era=row[9],
        )
        for row in con.execute(_SHARDS).all()
    }


def segment_row(segment: Segment) -> dict[str, Any]:
    row = msgspec.structs.asdict(segment)
    del row["ranges"]
    row["inputs"] = _text(segment.inputs)
    row["event_types"] = None if segment.event_types is None else _text(segment.event_types)
    return row


def range_rows(segment: Segment) -> list[dict[str, Any]]:
    return [
        {
            "segment_id": segment.segment_id,
            "shard": part.shard,
            "after_ms": part.after.ms,
            "after_seq": part.after.seq,
            "upto_ms": part.upto.ms,
            "upto_seq": part.upto.seq,
            "events": part.events,
            "events_upto": part.events_upto,
            "bytes_upto": part.bytes_upto,
            "rejected_upto": part.rejected_upto,
        }
        for part in segment.ranges
    ]


def read_segments(con: sa.Connection, known: Mapping[str, Segment]) -> dict[str, Segment]:
    """Every listed segment by id, oldest first. Those in `known` are taken from there: a segment's rows never change."""
    ids = con.execute(_SEGMENT_IDS).scalars().all()
    missing = [segment_id for segment_id in ids if segment_id not in known]
    fetched = _fetch_segments(con, missing) if missing else {}
    return {segment_id: fetched.get(segment_id) or known[segment_id] for segment_id in ids}


def _fetch_segments(con: sa.Connection, ids: Sequence[str]) -> dict[str, Segment]:
    rows, ranges = schema.segments, schema.segment_ranges
    of_segments, of_ranges = sa.select(rows), sa.select(ranges).order_by(ranges.c.segment_id, ranges.c.shard)
    if len(ids) <= FETCH_MAX:
        of_segments = of_segments.where(rows.c.segment_id.in_(ids))
        of_ranges = of_ranges.where(ranges.c.segment_id.in_(ids))
    found: dict[str, list[ShardRange]] = {}
    for segment_id, shard, after_ms, after_seq, upto_ms, upto_seq, *counts in con.execute(of_ranges).all():
        events, events_upto, bytes_upto, rejected_upto = counts
        found.setdefault(segment_id, []).append(
            ShardRange(
                shard=shard,
                after=Position(after_ms, after_seq),
                upto=Position(upto_ms, upto_seq),
                events=events,
                events_upto=events_upto,
                bytes_upto=bytes_upto,
                rejected_upto=rejected_upto,
            )
        )
    segments = {}
    for row in con.execute(of_segments).mappings().all():
        lists = {"inputs": _words(row["inputs"]), "event_types": row["event_types"] and _words(row["event_types"])}
        segment_id = row["segment_id"]
        segments[segment_id] = Segment(**{**row, **lists}, ranges=tuple(found.get(segment_id, ())))
    return segments


def read_files(con: sa.Connection, known: Mapping[str, ColdFile]) -> dict[str, ColdFile]:
    """Every listed cold file by id, oldest first; those in `known` are taken from there."""
    ids = con.execute(_FILE_IDS).scalars().all()
    missing = [file_id for file_id in ids if file_id not in known]
    fetched = {}
    if missing:
        there = {one["name"] for one in sa.inspect(con).get_columns("cold_files")}  # a ledger that no worker has completed yet
        files = sa.select(*(column for column in schema.cold_files.c if column.name in there))
        if len(missing) <= FETCH_MAX:
            files = files.where(schema.cold_files.c.file_id.in_(missing))
        for row in con.execute(files).mappings().all():
            types = row["event_types"] and _words(row["event_types"])
            fetched[row["file_id"]] = ColdFile(**{**row, "event_types": types})
    return {file_id: fetched.get(file_id) or known[file_id] for file_id in ids}


def file_row(file: ColdFile) -> dict[str, Any]:
    return {**msgspec.structs.asdict(file), "event_types": None if file.event_types is None else _text(file.event_types)}


def batch_row(batch: Batch, *, snapshot_id: str | None, now_us: int) -> dict[str, Any]:
    names = ("batch_id", "day", "kind", "policy_hash", "rate_min", "events_in", "events_kept")
    return {**{name: getattr(batch, name) for name in names}, "snapshot_id": snapshot_id, "committed_us": now_us}


def read_batches(con: sa.Connection) -> list[BatchRow]:
    return [BatchRow(**row) for row in con.execute(_BATCHES).mappings().all()]


def read_whole_batches(con: sa.Connection) -> frozenset[str]:
    return frozenset(con.execute(_WHOLE_BATCHES).scalars())


def intent_row(intent: Intent) -> dict[str, Any]:
    return {**msgspec.structs.asdict(intent), "inputs": _text(intent.inputs)}


def read_intents(con: sa.Connection) -> list[Intent]:
    return [Intent(**{**row, "inputs": _words(row["inputs"])}) for row in con.execute(_INTENTS).mappings().all()]


def read_totals(con: sa.Connection) -> tuple[ShardTotals, ...]:
    return tuple(ShardTotals(shard=row[0], kept=row[1], sampled_out=row[2], erased=row[3]) for row in con.execute(_TOTALS).all())


def read_losses(con: sa.Connection) -> tuple[Loss, ...]:
    return tuple(
        Loss(shard=row[0], era=row[1], observed=row[2], reported=row[3], at_us=row[4], reason=row[5])
        for row in con.execute(_LOSSES).all()
    )


def events_by_shard(segments: Iterable[Segment]) -> dict[int, int]:
    """shard → events these segments hold; shards without are left out."""
    total: dict[int, int] = {}
    for segment in segments:
        for part in segment.ranges:
            if part.events:
                total[part.shard] = total.get(part.shard, 0) + part.events
    return total


def _text(words: Iterable[str]) -> str:
    return msgspec.json.encode(list(words)).decode()


def _words(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


_SHARDS = sa.select(schema.shards).order_by(schema.shards.c.shard)
_SEGMENT_IDS = sa.select(schema.segments.c.segment_id).order_by(schema.segments.c.segment_id)
_FILE_IDS = sa.select(schema.cold_files.c.file_id).order_by(schema.cold_files.c.file_id)
_TOTALS = sa.select(schema.totals).order_by(schema.totals.c.shard)
_BATCHES = sa.select(schema.batches).order_by(schema.batches.c.batch_id)
_WHOLE_BATCHES = sa.select(schema.batches.c.batch_id).where(schema.batches.c.rate_min >= 1)
_INTENTS = sa.select(schema.intents).order_by(schema.intents.c.batch_id)
_LOSSES = sa.select(schema.losses).order_by(schema.losses.c.era, schema.losses.c.shard)
