"""recent(100) from Redis' cache, against a bare XREVRANGE of the same events and their decoding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
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
from thermocline.store import connect

LIMIT = 100
CONVERSATIONS = 10
EVENTS = 150
BLOCKS = {1: (2.5, 0.0012), 10: (1.5, None), 50: (1.5, None)}
"""Events of a block: the most its p50 may be, as a ratio and absolute."""


def _cases(size: int, quick: bool) -> list[Case]:
    calls = min(size // 10, 300 if quick else 3000)
    return [Case(f"blocks-of-{events}", 0, partial(_own, block=events, calls=calls)) for events in BLOCKS]


def _own(bench: Bench, *, block: int, calls: int) -> Sequence[Row]:
    folder = bench.folder("recent")
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server)
        names = fill(bench, server.client, config, block)
        with connect(config) as store:

            def own(number: int) -> object:
                return store.recent(names[number % len(names)], LIMIT).to_arrow()

            def bare(number: int) -> object:
                found = server.client.xrevrange(names[number % len(names)], count=LIMIT)
                return [orjson.loads(fields[b"d"]) for _, fields in found]

            assert own(0).num_rows == len(bare(0)) == LIMIT
            taken = interleaved_s({"own": own, "bare": bare}, calls)
    p50_s = percentile(taken["own"], 0.5)
    ratio = p50_s / percentile(taken["bare"], 0.5)
    most, most_s = BLOCKS[block]
    return [
        Row(
            what=f"recent({LIMIT}), blocks of {block} event{'s' * (block > 1)}",
            value=spread(taken["own"]),
            against=f"XREVRANGE of {LIMIT} one-event entries, decoded by orjson: {spread(taken['bare'])}; ratio {ratio:.2f}",
            target=f"p50 ≤ {most}×" + (f", ≤ {shown_time(most_s)}" if most_s else ""),
            met=ratio <= most and (most_s is None or p50_s <= most_s),
            figures={"p50_s": p50_s, "p99_s": percentile(taken["own"], 0.99), "ratio": ratio},
        )
    ]


def fill(bench: Bench, client: redis.Redis, config: Settings, block: int) -> list[str]:
    """Conversations of EVENTS events each, ours in blocks, and the same events one by one in a stream of the same name."""
    given = [event for table in Workload(CONVERSATIONS * EVENTS, end_us=bench.end_us).arrivals() for event in kwargs_of(table)]
    names = [f"conversation-{number}" for number in range(CONVERSATIONS)]
    with Client(config) as own:
        for start in range(0, len(given), block):
            name = names[start // EVENTS]
            events = [{**event, "conversation_id": name} for event in given[start : start + block]]
            own.append_many([Event(**event) for event in events])
            for event in events:
                client.xadd(name, {"d": orjson.dumps(event)})
    return names


TABLE = Table(
    name="recent",
    title="recent(): the newest events of a conversation, cached",
    about="The newest 100 of 150 events as Arrow columns, another conversation each time. The bare baseline reads one entry "
    "per event, as one would store them without blocks, and decodes each to a dict.",
    sizes=(1_000_000,),
    cases=_cases,
)
