"""A worker's life for a trace: `python -m tests.traced_worker FOLDER KIND SEED`, and what Redis held at every moment of it.

Each round opens the namespace of FOLDER/settings.json anew, appends, and lets the worker do everything there is to do: settle,
trim, merge, archive, compact, purge, scrub, checkpoint. FOLDER/marks has a line before every change of Redis that matters to
whoever opens the namespace next, FOLDER/redis.msgpack what Redis held.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.tidying import DAY_US
from thermocline.archiver.lease import Lease
from thermocline.archiver.scrub import scrub
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.tiers.block import Position, shard_of
from thermocline.tiers.hot_redis import RedisHot
from thermocline.tiers.opening import Tiers, open_tiers
from thermocline.tiers.redis_link import Link

CONVERSATIONS = 6
EVENTS_PER_ROUND = 120
DAYS = {"warm": (2, 1), "days": (3, 2), "cold": (14, 1)}
"""Kind of life → ages of its events. After a week they are archived, which writes ten times as much."""
DAY_ROWS_MIN = {"warm": 10_000, "days": 60, "cold": 60}
"""Warm: segments of mixed days only, so a pass has less to merge; days: segments of one day, too."""
ROUNDS = {"warm": 7, "days": 5, "cold": 2}
DAMAGED = "damaged"
"""A conversation whose only block is damaged in Redis: its events are rejected."""
SECTIONS: dict[str, dict[str, Any]] = {
    "hot": {
        "shards": 2,
        "buckets": 4,
        "durable_lag_s": 0,
        "log_grace_s": 0,
        "cache_window_s": 0,
        "connect_timeout_s": 60,
        "timeout_s": 60,  # traced, and on a busy machine, everything takes its time
    },
    "ingest": {"deadline_s": 120},
    "warm": {
        "fan_in": 2,
        "purge_grace_s": 0,
        "day_rows_min": 60,
        "rollup_rows_min": 40,
        "threads": 1,
        "settle_batch_events": 500,
    },
    "query": {"threads": 1},
    "cold": {"compact_files_min": 2, "purge_grace_s": 0},
    "sampling": {"rules": [{"name": "all", "keep": True}]},
}


class Round(msgspec.Struct):
    """What Redis held when the appends of a round had been acknowledged."""

    keys: dict[str, bytes]
    """DUMP of every key but the logs."""
    entries: list[int]
    """By shard, how many there had been in the log until then."""
    events: dict[str, dict[int, str]]
    """conversation → seq → content, of every acknowledged event that can be read."""
    rejected: int
    """Other acknowledged events."""


class Recorded(msgspec.Struct):
    """What Redis held at every moment, as far as nothing was trimmed."""

    created: list[list[bytes]]
    """By shard, the counters before the first append, name and value in turn."""
    logs: list[list[tuple[bytes, list[bytes]]]]
    """By shard, every entry that ever was in the log."""
    rounds: list[Round]


class Mark(msgspec.Struct):
    """What happens next: a shard is made, or trimmed; a round has been appended."""

    shard: int | None = None
    upto: str | None = None


class Moment(msgspec.Struct):
    """How far Redis was changed."""

    made: int = 0
    """Shards."""
    rounds: int = 0
    trimmed: dict[int, str] = {}

    def copied(self) -> Moment:
        return Moment(self.made, self.rounds, dict(self.trimmed))

    def pass_by(self, text: str) -> None:
        """Let what a mark says be done."""
        mark = msgspec.json.decode(text, type=Mark)
        if mark.shard is None:
            self.rounds += 1
        elif mark.upto is None:
            self.made = max(self.made, mark.shard + 1)
        else:
            self.trimmed[mark.shard] = mark.upto


def settings_for_life(data_dir: Path, redis_url: str, kind: str) -> Settings:
    warm = {**SECTIONS["warm"], "day_rows_min": DAY_ROWS_MIN[kind]}
    return load({"data_dir": str(data_dir), "redis_url": redis_url, **SECTIONS, "warm": warm}, environ={})


def live(folder: Path, kind: str, seed: int) -> None:
    """See above."""
    settings = load(msgspec.json.decode((folder / "settings.json").read_bytes()), environ={})
    tell = _telling(folder / "marks")
    dice = random.Random(seed)
    kept = Recorded(created=[], logs=[], rounds=[])
    events: dict[str, dict[int, str]] = {}
    rejected = 0
    for number in range(ROUNDS[kind]):
        with open_tiers(settings) as tiers:
            if not kept.created:
                counters = [("HGETALL", tiers.hot.keys.meta(shard)) for shard in range(tiers.hot.shards)]
                kept.created = tiers.hot.link.pipeline(counters)
                kept.logs = [[] for _ in counters]
            with Client(settings, tiers=tiers) as client:
                _append(client, events, dice, number, DAYS[kind])
                if number == 0:
                    rejected += _append_damaged(client, tiers)
            _keep(tiers, kept, events, rejected)
            tell(Mark())
            Worker(tiers).once()
            scrub(tiers)
            if number % 2 == 0:
                with Lease(settings.namespace_dir, tiers.ledger):
                    tiers.ledger.checkpoint()
    (folder / "redis.msgpack").write_bytes(msgspec.msgpack.encode(kept))


def _telling(marks: Path) -> Callable[[Mark], None]:
    """What writes marks; it is called before shards are made and logs are trimmed."""
    file = os.open(marks, os.O_WRONLY | os.O_CREAT)
    put_meta, trim = RedisHot.put_meta, RedisHot.trim

    def tell(mark: Mark) -> None:
        os.write(file, msgspec.json.encode(mark) + b"\n")

    def told_put_meta(hot: RedisHot, shard: int, *args: Any, **more: Any) -> None:
        tell(Mark(shard))
        put_meta(hot, shard, *args, **more)

    def told_trim(hot: RedisHot, shard: int, upto: Position | None, **more: Any) -> int:
        if upto is not None:
            tell(Mark(shard, str(upto)))
        return trim(hot, shard, upto, **more)

    RedisHot.put_meta, RedisHot.trim = told_put_meta, told_trim  # type: ignore[method-assign]
    return tell


def _append(client: Client, events: dict[str, dict[int, str]], dice: random.Random, number: int, days: Sequence[int]) -> None:
    now_us = time.time_ns() // 1000
    days_us = [(now_us // DAY_US - age) * DAY_US for age in days]
    given = [
        {
            "conversation_id": f"c{dice.randrange(CONVERSATIONS)}",
            "event_type": dice.choice(("output.chunk", "tool.call", "error", "intervention")),
            "content": dice.randbytes(dice.choice((4, 40, 400))).hex(),
            "task_id": f"task-{dice.randrange(4)}",
            "duration_ms": dice.random() * 1000,
            "output_tokens": dice.randrange(100),
            "metadata": {"round": number},
            "timestamp": dice.choice(days_us) + dice.randrange(DAY_US // 2),
        }
        for _ in range(EVENTS_PER_ROUND)
    ]
    for event, receipt in zip(given, client.append_many(given), strict=True):
        events.setdefault(receipt.conversation_id, {})[receipt.seq] = str(event["content"])


def _append_damaged(client: Client, tiers: Tiers) -> int:
    """Append a block and change its payload in the log; how many events that were."""
    receipts = client.append_many([{"conversation_id": DAMAGED, "event_type": "error", "content": "x"}] * 3)
    log = tiers.hot.keys.log(shard_of(DAMAGED, tiers.hot.shards))
    changed = [
        (entry, [value.replace(b"error", b"3rror") if DAMAGED.encode() in fields else value for value in fields])
        for entry, fields in tiers.hot.link.call("XRANGE", log, "-", "+")
    ]
    tiers.hot.link.pipeline([("DEL", log), *(("XADD", log, entry, *fields) for entry, fields in changed)])
    return len(receipts)


def _keep(tiers: Tiers, kept: Recorded, events: dict[str, dict[int, str]], rejected: int) -> None:
    """Record what Redis holds."""
    link, keys = tiers.hot.link, tiers.hot.keys
    logs = [keys.log(shard) for shard in range(tiers.hot.shards)]
    for name, known in zip(logs, kept.logs, strict=True):
        after = known[-1][0].decode() if known else "0-0"
        known += [(entry, fields) for entry, fields in link.call("XRANGE", name, f"{Position.parse(after).next()}", "+")]
    names = [name for name in names_in(link, keys.pattern()) if name not in logs]
    dumps = zip(names, link.pipeline([("DUMP", name) for name in names]), strict=True)
    kept.rounds.append(
        Round(
            keys={name: dump for name, dump in dumps if dump is not None},  # pointers expire with the cache window
            entries=[len(known) for known in kept.logs],
            events={name: dict(found) for name, found in events.items()},
            rejected=rejected,
        )
    )


def names_in(link: Link, pattern: str) -> list[str]:
    """All keys that match."""
    return sorted(name.decode() for name in link.call("KEYS", pattern))


def main() -> None:
    folder, kind, seed = sys.argv[1:]
    live(Path(folder), kind, int(seed))


if __name__ == "__main__":
    main()
