"""recent(100) from Redis' cache, of a conversation that is new to the reader and of one it follows, against a bare XREVRANGE of
the same events and their decoding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
import redis

from bench import stores
from bench.case import Bench, Case, Table
from bench.measure import interleaved_s, percentile, shown_time, spread
from bench.results import Row
from bench.servers import RedisServer
from bench.workload import Workload, kwargs_of
from thermocline.config import Settings
from thermocline.event import Event
from thermocline.ingest.append import Client
from thermocline.store import Store, connect

LIMIT = 100
CONVERSATIONS = 10
EVENTS = 150
EVENTS_ADDED = 5000
"""Different ones, appended while a reader follows."""
WARM_UP = 20
BLOCKS = {1: (2.5, 0.0012), 10: (1.5, None), 50: (1.5, None)}
"""Events of a block: the most its p50 may be, as a ratio and absolute."""


def _cases(size: int, quick: bool) -> list[Case]:
    calls = min(size // 10, 60 if quick else 3000)
    return [
        Case(f"{name}blocks-of-{events}", 0, partial(_measured, block=events, calls=calls, followed=followed))
        for name, followed in (("", False), ("followed-", True))
        for events in BLOCKS
    ]


def _measured(bench: Bench, *, block: int, calls: int, followed: bool) -> Sequence[Row]:
    """By a reader that keeps nothing; followed: by one that keeps what it read, after another block is appended each time."""
    folder = bench.folder("recent")
    given = [event for table in Workload(EVENTS_ADDED, end_us=bench.end_us).arrivals() for event in kwargs_of(table)]
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server, query={} if followed else {"recent_bytes_max": 0})
        names = fill(bench, server.client, config, block)
        with connect(config) as store, Client(config) as client:

            def add(number: int) -> None:
                start = (number + WARM_UP) * block % EVENTS_ADDED
                _append(client, server.client, names[number % len(names)], given[start : start + block])

            ways = {"own": partial(_own, store, names), "bare": partial(_bare, server.client, names)}
            assert len(ways["own"](0)) == len(ways["bare"](0)) == LIMIT
            taken = interleaved_s(ways, calls, warm_up=WARM_UP, before=add if followed else lambda _: None)
    what = "that the reader follows, after each append" if followed else "that was not read before"
    return [_row(f"recent({LIMIT}) of a conversation {what}", block, taken)]


def _own(store: Store, names: Sequence[str], number: int) -> pa.Table:
    return store.recent(names[number % len(names)], LIMIT).to_arrow()


def _bare(client: redis.Redis, names: Sequence[str], number: int) -> list[object]:
    found = client.xrevrange(names[number % len(names)], count=LIMIT)
    return [orjson.loads(fields[b"d"]) for _, fields in found]


def _row(what: str, block: int, taken: dict[str, list[float]]) -> Row:
    p50_s = percentile(taken["own"], 0.5)
    ratio = p50_s / percentile(taken["bare"], 0.5)
    most, most_s = BLOCKS[block]
    return Row(
        what=f"{what}, blocks of {block} event{'s' * (block > 1)}",
        value=spread(taken["own"]),
        against=f"XREVRANGE of {LIMIT} one-event entries, decoded by orjson: {spread(taken['bare'])}; ratio {ratio:.2f}",
        target=f"p50 ≤ {most}×" + (f", ≤ {shown_time(most_s)}" if most_s else ""),
        met=ratio <= most and (most_s is None or p50_s <= most_s),
        figures={"p50_s": p50_s, "p99_s": percentile(taken["own"], 0.99), "ratio": ratio},
    )


def fill(bench: Bench, client: redis.Redis, config: Settings, block: int) -> list[str]:
    """Conversations of EVENTS events each, ours in blocks, and the same events one by one in a stream of the same name."""
    given = [event for table in Workload(CONVERSATIONS * EVENTS, end_us=bench.end_us).arrivals() for event in kwargs_of(table)]
    names = [f"conversation-{number}" for number in range(CONVERSATIONS)]
    ingest = config.ingest.model_copy(update={"block_events_max": block})
    with Client(config.model_copy(update={"ingest": ingest})) as own:
        for number, name in enumerate(names):
            _append(own, client, name, given[number * EVENTS : (number + 1) * EVENTS])
    return names


def _append(own: Client, client: redis.Redis, name: str, given: Sequence[dict[str, Any]]) -> None:
    """In blocks of ours, and the same events as an entry each."""
    events = [{**event, "conversation_id": name} for event in given]
    own.append_many([Event(**event) for event in events])
    with client.pipeline(transaction=False) as entries:
        for event in events:
            entries.xadd(name, {"d": orjson.dumps(event)})
        entries.execute()


TABLE = Table(
    name="recent",
    title="recent(): the newest events of a conversation, cached",
    about="The newest 100 of 150 events and more as Arrow columns, another of ten conversations each time. A reader keeps what "
    "it decoded (`query.recent_bytes_max`) and asks Redis only for what came since; in the first three rows it keeps nothing. "
    "The bare baseline reads one entry per event, as one would store them without blocks, and decodes each to a dict.",
    sizes=(1_000_000,),
    cases=_cases,
)
