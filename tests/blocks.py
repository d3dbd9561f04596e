"""Blocks as settle reads them, made up for tests, and a log that serves them page by page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from thermocline.tiers.block import ORIGIN, Position
from thermocline.tiers.hot import BLOCKS_SCHEMA, ServerFacts, ShardCut

PAYLOAD_BYTES = 10


def row(
    number: int, *, shard: int = 0, events: int = 1, total: int, size: int | None = None, fault: str | None = None
) -> dict[str, Any]:
    """One row of BLOCKS_SCHEMA: the block at position <number>-0 with `events` events after which N is `total`."""
    payload = "x" * PAYLOAD_BYTES
    return {
        "shard": shard,
        "position_ms": number,
        "position_seq": 0,
        "conversation_id": "c",
        "seq_first": total - events + 1,
        "events": events,
        "events_total": total,
        "bytes_total": number * PAYLOAD_BYTES if size is None else size,
        "ingested_us": number,
        "block_id": "" if fault else f"{number:032d}",
        "sizes": [],
        "skip": None,
        "payload": base64.b64encode(payload.encode()).decode() if fault else payload,
        "fault": fault,
    }


def rows_in_order(counts: Sequence[int], *, shard: int = 0) -> list[dict[str, Any]]:
    """Blocks at 1-0, 2-0, … with these many events."""
    total = 0
    rows = []
    for number, events in enumerate(counts, start=1):
        total += events
        rows.append(row(number, shard=shard, events=events, total=total))
    return rows


def cut_of(rows: Sequence[dict[str, Any]], *, shard: int = 0, **changes: Any) -> ShardCut:
    """What Redis says of a shard whose log ends with these rows."""
    cut = ShardCut(
        shard=shard,
        incarnation="i",
        era=0,
        events_total=rows[-1]["events_total"] if rows else 0,
        bytes_total=rows[-1]["bytes_total"] if rows else 0,
        last=Position(rows[-1]["position_ms"], 0) if rows else ORIGIN,
        trimmed=ORIGIN,
        trimmed_bytes=0,
        entries=len(rows),
    )
    return msgspec.structs.replace(cut, **changes)


class FakeLogs:
    """`page` over given rows, `page_rows` at a time; counts how often it was asked."""

    def __init__(self, rows: Sequence[dict[str, Any]], *, page_rows: int = 1000) -> None:
        self.rows = list(rows)
        self.page_rows = page_rows
        self.pages = 0

    def page(self, shard: int, after: Position, upto: Position, *, bytes_max: int) -> pa.Table:
        self.pages += 1
        found = [one for one in self.rows if one["shard"] == shard and after < Position(one["position_ms"], 0) <= upto]
        fitting = max(1, bytes_max // PAYLOAD_BYTES)
        return pa.Table.from_pylist(found[: min(self.page_rows, fitting)], schema=BLOCKS_SCHEMA)


def facts(**changes: Any) -> ServerFacts:
    """What a healthy Redis under `everysec` says of itself."""
    said: dict[str, Any] = {
        "version": "7.0.15",
        "run_id": "run1",
        "maxmemory_policy": "noeviction",
        "maxmemory": 0,
        "used_memory": 0,
        "append_only": True,
        "append_fsync": "everysec",
        "disk_ok": True,
        "write_ok": True,
        "waits_for_disk": False,
        "replicas": 0,
        "now_us": 0,
    }
    return ServerFacts(**{**said, **changes})
