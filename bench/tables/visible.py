"""From append to an answer of SQL that has the event, under load."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from bench import stores
from bench.case import Bench, Case, Table
from bench.child import Child, write_events
from bench.measure import Clock, cpu_s_of, percentile, spread
from bench.results import Row
from bench.servers import RedisServer
from bench.workload import Workload

RATE = 20_000
READERS = 3
PAUSE_S = 0.005
GIVEN_EVENTS = 20_000
"""They are appended again and again."""
LIMIT_S = 0.050
WARM_UP_S = 2


def _cases(size: int, quick: bool) -> list[Case]:
    duration_s = 5.0 if quick else 60.0
    return [Case("own", 0, partial(_own, per_s=min(RATE, size), duration_s=duration_s if size >= 100_000 else 3.0))]


def _own(bench: Bench, *, per_s: int, duration_s: float) -> Sequence[Row]:
    folder = bench.folder("visible")
    events = write_events(folder / "events.arrow", Workload(GIVEN_EVENTS, end_us=bench.end_us))
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server)
        with ExitStack() as begun:
            worker = begun.enter_context(Child("worker", config))
            writer = begun.enter_context(Child("write", config, events=events, per_s=per_s, duration_s=duration_s))
            readers = [begun.enter_context(Child("read", config, pause_s=PAUSE_S)) for _ in range(READERS)]
            for child in (worker, writer, *readers):
                child.ready()
            pids = {"producer": writer.pid, "Redis": server.pid, "worker": worker.pid}
            pids |= {f"reader {number}": reader.pid for number, reader in enumerate(readers)}
            used_s, clock = {name: cpu_s_of(pid) for name, pid in pids.items()}, Clock()
            written = writer.ask("go")
            wall_s = clock.wall_s
            used_s = {name: cpu_s_of(pid) - used_s[name] for name, pid in pids.items()}
            seen = [reader.ask("stop")["seen"] for reader in readers]
    first = int(WARM_UP_S / 0.005) if duration_s > 2 * WARM_UP_S else 0
    taken = [one for reader in seen for one in delays_s(written["stamps"], reader, first=first)]
    if not taken:
        raise ValueError("no reader saw a marker")
    rate = written["events"] / written["taken_s"]
    missing = READERS * (len(written["stamps"]) - first) - len(taken)
    p99_s = percentile(taken, 0.99)
    lags = [one for reader in seen for one in lags_s(written["stamps"], reader, first=first)]
    return [
        Row(
            what=f"append → visible to SQL, {READERS} reader processes",
            value=spread(taken),
            target=f"p99 ≤ {LIMIT_S * 1e3:.0f} ms at {RATE:,} events/s",
            met=p99_s <= LIMIT_S and rate >= 0.97 * RATE,
            note=f"{rate:,.0f} events/s; {len(lags):,} queries; {missing} of the last markers were not waited for",
            figures={"p50_s": percentile(taken, 0.5), "p99_s": p99_s, "events_per_s": rate},
        ),
        Row(
            what="what a query lacks of what was appended before it began: the age of the oldest such event",
            value=spread(lags),
            figures={"lag_p50_s": percentile(lags, 0.5), "lag_p99_s": percentile(lags, 0.99)},
        ),
        _cores(used_s, wall_s, sum(map(len, seen))),
    ]


def _cores(used_s: dict[str, float], wall_s: float, queries: int) -> Row:
    """How many cores each process took."""
    shares = {name: one / wall_s for name, one in used_s.items()}
    reading = [name for name in shares if name.startswith("reader")]
    each_s = sum(used_s[name] for name in reading) / queries
    readers = ", ".join(f"{shares[name]:.2f}" for name in reading)
    others = ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if name not in reading)
    return Row(
        what="cores that were busy with it meanwhile",
        value=f"{sum(shares.values()):.2f} of {os.cpu_count()}",
        note=f"{others}, readers {readers}; {each_s * 1e3:.1f} ms of CPU a query",
        figures={"cores": sum(shares.values()), "query_cpu_s": each_s},
    )


def delays_s(stamps: Sequence[int], seen: Sequence[Sequence[int]], *, first: int) -> list[float]:
    """For each marker from the `first` on: from its append to the end of the first query that had it, if any did.

    stamps  µs at which the markers 2, 3 … were appended
    seen    (µs at its begin and end, newest marker it had) of each query of a reader
    """
    newest = [one[2] for one in seen]
    places = [(stamp, bisect_left(newest, number + 2)) for number, stamp in enumerate(stamps)][first:]
    return [(seen[place][1] - stamp) / 1e6 for stamp, place in places if place < len(seen)]


def lags_s(stamps: Sequence[int], seen: Sequence[Sequence[int]], *, first: int) -> list[float]:
    """For each query: how long before its begin the first marker was appended that it should have had and had not; 0 if none."""
    begun = [one for one in seen if one[0] >= stamps[first]]
    return [max(0, begin - stamps[newest - 1]) / 1e6 if newest - 1 < len(stamps) else 0.0 for begin, _, newest in begun]


TABLE = Table(
    name="visible",
    title="From append to SQL",
    about=f"One process appends {RATE:,} events/s through a Producer, one of them a marker every 5 ms; a worker settles and "
    f"merges; {READERS} processes ask `SELECT max(seq) … WHERE conversation_id = 'marker'` again {PAUSE_S * 1e3:.0f} ms "
    "after each answer. The delay is from the call of append to the end of the first query that has the marker, over all "
    "markers and readers, so it includes the wait for the next query.",
    sizes=(1_000_000,),
    cases=_cases,
)
