"""What the tests of the archiver share: a store on a real Redis, events that are numbered, and a look at what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from tests.servers import RedisServer
from thermocline.archiver.settle import Settler, SettleReport
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.tiers.opening import Tiers

SHARDS = 4


class Crash(BaseException):
    """The process ends here: nothing of ours may catch it."""


def settings_for(folder: Path, server: RedisServer, **more: Any) -> Settings:
    """Settings of a small store below `folder` on `server`; sections given win."""
    hot = {"shards": SHARDS, "buckets": 64, **more.pop("hot", {})}
    return load({"data_dir": str(folder / "data"), "redis_url": server.url, "hot": hot, **more}, environ={})


def append(tiers: Tiers, count: int, *, conversations: int = 7, start: int = 0, **fields: Any) -> None:
    """Append `count` events whose content is their number, from `start` on."""
    with Client(tiers.settings, tiers=tiers) as client:
        client.append_many(
            [
                {"conversation_id": f"c{number % conversations}", "event_type": "output.chunk", "content": str(number), **fields}
                for number in range(start, start + count)
            ]
        )


def rows(tiers: Tiers) -> list[int]:
    """The contents of all live segments, as numbers, sorted."""
    found: list[int] = []
    for segment in tiers.ledger.view().segments:
        with duckdb.connect(tiers.warm.path(segment.segment_id), read_only=True) as con:
            found += [int(row[0]) for row in con.execute("SELECT content FROM events").fetchall()]
    return sorted(found)


def settle_all(settler: Settler) -> SettleReport:
    """Settle until nothing waits; the last report that settled something."""
    last = None
    while (report := settler.step(force=True)).events:
        last = report
    assert last is not None
    return last


def corrupt_block(tiers: Tiers, number: int, *, shard: int | None = None) -> int:
    """Change a byte of the payload of block `number` in the log of a shard, or of the one in use; its events."""
    if shard is None:
        [shard] = [cut.shard for cut in tiers.hot.cut() if cut.events_total]
    log = tiers.hot.keys.log(shard)
    entries = tiers.hot.link.call("XRANGE", log, "-", "+")
    number %= len(entries)
    tiers.hot.link.call("DEL", log)
    for index, (entry_id, fields) in enumerate(entries):
        flat = list(fields)
        if index == number:
            place = flat.index(b"d") + 1
            flat[place] = flat[place].replace(b"output", b"0utput", 1)
        tiers.hot.link.call("XADD", log, entry_id, *flat)
    found = dict(zip(entries[number][1][0::2], entries[number][1][1::2], strict=True))
    return int(found[b"n"])
