"""Many agents at once: events per second, latency, memory, and whether every event is stored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import stores
from bench.case import Bench, Case, Table
from bench.child import Child
from bench.measure import percentile, resident_bytes, spread
from bench.results import Row
from bench.servers import RedisServer
from thermocline.store import connect

AGENTS = (10, 100, 1_000, 10_000)
CONCURRENT = (1, 5, 10)
PROCESSES = 2
THREADS = {True: 4, False: 96}
"""Per process; quick, full. In the full run more than the sessions that a Client may use at once: calls wait for one, as those of
many agents do. The quick run has as many as get most out of two cores."""
APPENDS = {True: 1_000, False: 100_000}


def _cases(size: int, quick: bool) -> list[Case]:
    agents = [one for one in AGENTS if one <= max(10, size // 100)]
    return [
        Case(f"{count}x{concurrent}", 0, partial(_own, count=count, concurrent=concurrent))
        for count in agents
        for concurrent in CONCURRENT
    ]


class Crowd:
    """A store with a worker, and the processes that agents live in."""

    def __init__(self, bench: Bench) -> None:
        self._opened = ExitStack()
        folder = bench.folder("stress")
        self.server = self._opened.enter_context(RedisServer(folder / "redis"))
        config = stores.settings(folder, self.server)
        worker = self._opened.enter_context(Child("worker", config))
        threads = THREADS[bench.quick]
        self.children = [self._opened.enter_context(Child("agents", config, threads=threads)) for _ in range(PROCESSES)]
        self.store = self._opened.enter_context(connect(config))
        for child in (worker, *self.children):
            child.ready()

    def run(self, name: str, count: int, concurrent: int, appends: int) -> list[dict[str, Any]]:
        """What each process says; `appends` in each."""
        share = count // PROCESSES
        for part, child in enumerate(self.children):
            child.order(f"{name} {part * share} {share} {concurrent} {appends}")
        return [child.answer() for child in self.children]

    def close(self) -> None:
        self._opened.close()


def _own(bench: Bench, *, count: int, concurrent: int) -> Sequence[Row]:
    crowd: Crowd = bench.shared(("", "stress"), lambda: Crowd(bench))
    each = max(APPENDS[bench.quick], count * concurrent) // PROCESSES
    name = f"agents-{count}x{concurrent}"
    before = resident_bytes(crowd.server.pid)
    told = crowd.run(name, count, concurrent, each)
    [(rows, distinct)] = crowd.store.sql(
        "SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events WHERE starts_with(conversation_id, ?)", [f"{name}-"]
    ).fetchall()
    taken = [one for answer in told for one in answer["latencies_s"]]
    wall_s = max(one["end_s"] for one in told) - min(one["begin_s"] for one in told)
    wanted = each * PROCESSES
    in_redis = resident_bytes(crowd.server.pid) - before
    in_agents = sum(one["peak_bytes"] for one in told)
    refused = sum(one["refused"] for one in told)
    stored = min(distinct, wanted) / wanted
    return [
        Row(
            what=f"{count:,} agents × {concurrent} at a time",
            value=f"{len(taken) / wall_s:,.0f} events/s, {spread(taken)}",
            target="100 % stored, each once",
            met=rows == distinct == len(taken) == wanted,
            note=f"{100 * stored:.6g} % of {wanted:,} stored, {refused:,} refused at first; "
            f"{in_agents / (1 << 20):,.0f} MiB, {in_redis / (1 << 20):+,.0f} in Redis",
            figures={
                "agents": count,
                "concurrent": concurrent,
                "events_per_s": len(taken) / wall_s,
                "p50_s": percentile(taken, 0.5),
                "p99_s": percentile(taken, 0.99),
                "memory_bytes": in_agents,
                "redis_memory_bytes": in_redis,
                "stored_ratio": stored,
            },
        )
    ]


TABLE = Table(
    name="stress",
    title="Many agents at once",
    about=f"Agents in {PROCESSES} processes, each with so many appends under way at any moment, one event a call, each "
    "acknowledged; a worker settles meanwhile. Latency is from the agent's call to its acknowledgement, so with thousands "
    "under way it is mostly the wait for their turn. An event that is refused with `retry_after_s` is appended again after "
    "that time. Afterwards the store is asked how many events it has. Memory is the peak of the agents' processes, and by how "
    "much redis-server grew: it keeps the events of all rows of this table, as they are of the same hour. A rival's own report "
    "of such a matrix falls to 68 % at 10,000.",
    sizes=(1_000_000,),
    cases=_cases,
)
