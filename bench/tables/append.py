"""append(): one event, acknowledged, against a bare XADD of the same bytes on the same server, and against peers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import orjson
import redis

from bench import stores
from bench.case import Bench, Case, Table
from bench.measure import Call, interleaved_s, percentile, shown_time, spread
from bench.peers import Nats, Postgres, Sqlite
from bench.peers.peer import Peer
from bench.results import Row
from bench.servers import RedisServer
from bench.workload import Workload, kwargs_of
from thermocline.ingest.append import Client

P50_TARGET_S = 0.187e-3
P99_TARGET_S = 0.223e-3
P50_RATIO, P99_RATIO = 1.8, 2.0


def _cases(size: int, quick: bool) -> list[Case]:
    calls = min(size, 1000 if quick else 10_000)
    peers = (Sqlite, Postgres, Nats)
    return [
        Case("unix", 0, partial(_ours, calls=calls, tcp=False)),
        Case("tcp", 0, partial(_ours, calls=calls, tcp=True)),
        *(Case(peer.name, 0, partial(_peer, peer=peer, calls=calls // 4), product=False) for peer in peers),
    ]


def events(bench: Bench, count: int) -> list[dict[str, Any]]:
    """So many events as Python values, as they come in."""
    load = Workload(max(count, 100), end_us=bench.end_us)
    found = (event for table in load.arrivals() for event in kwargs_of(table))
    return list(islice(found, count))


def _ours(bench: Bench, *, calls: int, tcp: bool) -> Sequence[Row]:
    given = events(bench, calls)
    lines = [orjson.dumps(event) for event in given]
    where = "TCP on 127.0.0.1" if tcp else "a unix socket"
    folder = bench.folder("append")
    with RedisServer(folder / "redis") as server:
        url = server.tcp_url if tcp else server.url
        bare = redis.Redis.from_url(url)
        with Client(stores.settings(folder, url=url)) as client:
            compared: dict[str, Call] = {
                "own": lambda number: client.append(**given[number]),
                "bare": lambda number: bare.xadd("bench:bare", {"d": lines[number]}),
            }
            taken = interleaved_s(compared, calls, warm_up=min(200, calls))
        bare.close()
    own, raw = taken["own"], taken["bare"]
    middle, high = (percentile(own, part) / percentile(raw, part) for part in (0.5, 0.99))
    p50_s, p99_s = percentile(own, 0.5), percentile(own, 0.99)
    against = f"bare redis-py XADD of the same bytes, one after the other: {spread(raw)}"
    rows = [
        Row(
            what=f"append(), one event over {where}",
            value=spread(own),
            against=f"{against}; ratios {middle:.2f} and {high:.2f}",
            target=f"p50 ≤ {P50_RATIO}×, p99 ≤ {P99_RATIO:.0f}×",
            met=middle <= P50_RATIO and high <= P99_RATIO,
            note=f"{calls:,} calls",
            figures={"p50_s": p50_s, "p99_s": p99_s, "bare_p50_s": percentile(raw, 0.5), "bare_p99_s": percentile(raw, 0.99)},
        )
    ]
    if not tcp:
        rows.append(
            Row(
                what="append(), absolute, over a unix socket",
                value=spread(own),
                target=f"p50 < {shown_time(P50_TARGET_S)}, p99 < {shown_time(P99_TARGET_S)}",
                met=p50_s < P50_TARGET_S and p99_s < P99_TARGET_S,
                note="the target is a figure that a rival publishes of its transport",
                figures={"p50_s": p50_s, "p99_s": p99_s},
            )
        )
    return rows


def _peer(bench: Bench, *, peer: type[Peer], calls: int) -> Sequence[Row]:
    what = f"{peer.title}, one event, committed"
    if peer.missing():
        return [Row(what=what, value=peer.missing())]
    given = events(bench, calls)
    with peer(bench.folder(peer.name)) as store:
        taken = interleaved_s({"one": lambda number: store.append_one(given[number])}, calls)["one"]
    figures = {"p50_s": percentile(taken, 0.5), "p99_s": percentile(taken, 0.99)}
    return [Row(what=what, value=spread(taken), note=f"{calls:,} calls", figures=figures)]


TABLE = Table(
    name="append",
    title="append(): one event, acknowledged",
    about="Events as Python values; each call returns when the event is acknowledged. Redis runs with appendonly yes and "
    "appendfsync everysec for both. SQLite commits in its process without syncing each time (WAL, NORMAL); PostgreSQL syncs "
    "each commit.",
    sizes=(1_000_000,),
    cases=_cases,
)
