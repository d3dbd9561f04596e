"""Tables of blocks as a log hands them out, from lines given as dicts (encoded here) or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from thermocline.event import NULLABLE_COLUMNS
from thermocline.tiers.block import shard_of
from thermocline.tiers.hot import BLOCKS_SCHEMA

SHARDS = 4
T0_US = 1_760_000_000_000_000
BLOCK_ID = "01990000-0000-7000-8000-0000{:08x}"

Line = dict[str, Any] | bytes


def event(index: int = 0, **fields: Any) -> dict[str, Any]:
    """A line's keys: a plain event `index` ms after T0, with `fields`."""
    return {"event_type": "output.chunk", "timestamp": T0_US + 1000 * index, **fields}


def sizes_of(lines: Sequence[Line]) -> list[int]:
    """What an honest header states of these lines; one given as bytes that is no JSON object counts as all NULL."""
    keys = [_keys(line) for line in lines]
    content, metadata = (sum(_bytes(one.get(name)) for one in keys) for name in ("content", "metadata"))
    return [content, metadata, *(sum(one.get(name) is None for one in keys) for name in NULLABLE_COLUMNS)]


def _keys(line: Line) -> dict[str, Any]:
    if isinstance(line, dict):
        return line
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(value: Any) -> int:
    return len(value.encode()) if isinstance(value, str) else 0


def block(
    lines: Sequence[Line], *, number: int = 1, conversation_id: str = "c", seq_first: int = 1, **changes: Any
) -> dict[str, Any]:
    """One row of BLOCKS_SCHEMA at position <number>-0; `changes` replace its columns."""
    skip = changes.get("skip") or ()
    row = {
        "shard": shard_of(conversation_id, SHARDS),
        "position_ms": number,
        "position_seq": 0,
        "conversation_id": conversation_id,
        "seq_first": seq_first,
        "events": len(lines) - len(skip),
        "events_total": 0,
        "bytes_total": 0,
        "ingested_us": T0_US + 10_000_000 + number,
        "block_id": BLOCK_ID.format(number)[:32] + "0000",
        "sizes": sizes_of(lines),
        "skip": None,
        "payload": b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines),
        "fault": None,
    }
    return {**row, **changes}


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The blocks in log order, with N and B running per shard where they are not given."""
    totals: dict[int, tuple[int, int]] = {}
    made = []
    for row in sorted(rows, key=lambda one: (one["shard"], one["position_ms"], one["position_seq"])):
        events, size = totals.get(row["shard"], (0, 0))
        totals[row["shard"]] = events, size = events + row["events"], size + len(row["payload"])
        made.append({**row, "events_total": row["events_total"] or events, "bytes_total": row["bytes_total"] or size})
    columns = []
    for field in BLOCKS_SCHEMA:
        values = [row[field.name] for row in made]
        if field.name == "payload":  # bytes of any kind, as a log may hold them
            raw = pa.array([one.encode() if isinstance(one, str) else one for one in values], pa.binary())
            columns.append(pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=BLOCKS_SCHEMA)
