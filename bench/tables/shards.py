"""Several Redis processes: the append rate of all together, and what one more agent takes of memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from bench import stores
from bench.case import Bench, Case, Table
from bench.child import Child, portable, write_events
from bench.results import Row
from bench.servers import RedisServer
from bench.workload import Workload
from thermocline.ingest.append import Client

REDISES = (1, 2, 4)
PRODUCERS = 4
AGENTS = {True: 2_000, False: 20_000}


def _cases(size: int, quick: bool) -> list[Case]:
    each = min(size, 40_000 if quick else 1_000_000) // PRODUCERS
    return [
        *(Case(f"{count}-redis", size, partial(_rate, redises=count, each=each)) for count in REDISES),
        Case("memory", 0, partial(_memory, agents=min(AGENTS[quick], size))),
    ]


class Producers:
    """Processes with events to append, ready for any store."""

    def __init__(self, bench: Bench, each: int) -> None:
        self._opened = ExitStack()
        events = write_events(bench.folder("shards") / "events.arrow", Workload(each, end_us=bench.end_us))
        self.children = [self._opened.enter_context(Child("produce", events=events, name=str(one))) for one in range(PRODUCERS)]
        for child in self.children:
            child.ready()

    def close(self) -> None:
        self._opened.close()


def _rate(bench: Bench, *, redises: int, each: int) -> Sequence[Row]:
    producers: Producers = bench.shared(("", "producers", each), lambda: Producers(bench, each))
    folder = bench.folder("shards")
    with ExitStack() as opened:
        servers = [opened.enter_context(RedisServer(folder / f"redis-{number}")) for number in range(redises)]
        configs = [stores.settings(folder / f"store-{number}", server, hot=stores.ROOM) for number, server in enumerate(servers)]
        for number, child in enumerate(producers.children):
            child.order(json.dumps(portable(configs[number % redises])))
        told = [child.answer() for child in producers.children]
    wall_s = max(one["end_s"] for one in told) - min(one["begin_s"] for one in told)
    events = sum(one["events"] for one in told)
    return [
        Row(
            what=f"{redises} Redis process{'es' * (redises > 1)}, {PRODUCERS} producer processes",
            events=events,
            value=f"{events / wall_s:,.0f} events/s",
            figures={"events_per_s": events / wall_s},
        )
    ]


def _memory(bench: Bench, *, agents: int) -> Sequence[Row]:
    folder = bench.folder("shards")
    text = "what an agent says first"
    with RedisServer(folder / "redis") as server, Client(stores.settings(folder, server)) as client:
        client.append("agent", "message.user", text)
        before = server.client.info("memory")["used_memory"]
        client.append_many(
            [
                {"conversation_id": f"agent-{number:08d}", "event_type": "message.user", "content": text}
                for number in range(agents)
            ]
        )
        taken = server.client.info("memory")["used_memory"] - before
    return [
        Row(
            what="memory in Redis for one more agent with one event",
            value=f"{taken / agents:,.0f} B",
            note=f"{agents:,} agents; the event, its pointer and the conversation's head",
            figures={"bytes_per_agent": taken / agents},
        )
    ]


TABLE = Table(
    name="shards",
    title="Several Redis processes",
    about="A store has one Redis: its 16 shards are keys in it. With more Redis processes one has more stores, each with a "
    "data directory of its own, and asks them one by one; that is measured here, four producer processes spread over them. "
    "On a machine with as many cores as processes the servers add up; where producers and servers share two cores, as here, "
    "the cores are the limit.",
    sizes=(1_000_000,),
    cases=_cases,
)
