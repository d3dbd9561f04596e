"""Producer.append() per event in one process, and append_many of ready lists, against bare pipelined redis-py and peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from bench import stores
from bench.case import Bench, Case, Table
from bench.measure import middle_ratio, quiet, seconds, shown_rate
from bench.peers import ClickHouse, DuckTable, Nats, Postgres, Sqlite
from bench.peers.peer import Peer
from bench.peers.redis_py import STREAM, pipelined, pure_python
from bench.results import Result, Row
from bench.servers import RedisServer
from bench.workload import Workload, kwargs_of
from thermocline.event import Event
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer

FIRST, LARGER = 1_000_000, 10_000_000
ROUND_EVENTS = 50_000
LIST_EVENTS = 500
PRODUCER_RATIO, PRODUCER_RATE, LISTS_RATIO = 2.5, 250_000, 4.0
Events = list[dict[str, Any]]


def _cases(size: int, quick: bool) -> list[Case]:
    count = min(size, 20_000 if quick else size)
    peers: Sequence[type[Peer]] = (Sqlite, Postgres, ClickHouse, DuckTable, Nats)
    cases = [Case("mixed", size, partial(_ours, count=count, active=10, burst=5))]
    if size <= FIRST:
        cases.append(Case("one-at-a-time", size, partial(_ours, count=count, active=1, burst=1)))
        count = min(count, 500_000)
    else:
        peers = (Sqlite, Nats)  # whether they slow down as what they hold grows
    return cases + [
        Case(peer.name, size, partial(_peer, peer=peer, count=count), product=False) for peer in peers if size <= peer.events_max
    ]


def rounds(bench: Bench, count: int, *, active: int = 10, burst: int = 5) -> Iterator[Events]:
    """`count` events as Python values, as they come in, ROUND_EVENTS at a time."""
    load = Workload(count, end_us=bench.end_us)
    for table in load.arrivals(active=active, burst=burst, rows_max=ROUND_EVENTS):
        yield kwargs_of(table)


def _ours(bench: Bench, *, count: int, active: int, burst: int) -> Sequence[Row]:
    taken: dict[str, list[float]] = {"producer": [], "lists": [], "bare": [], "python": []}
    sizes = []
    folder = bench.folder("producer")
    with RedisServer(folder / "redis") as server, pure_python(server) as slow:
        for number, given in enumerate(rounds(bench, count, active=active, burst=burst)):
            config = stores.settings(folder, server, namespace=f"round-{number}", hot=stores.ROOM)
            for name, call in _ways(config, server, slow, given).items():
                with quiet():
                    taken[name].append(seconds(call))
            sizes.append(len(given))
            _empty(server)
    total = sum(sizes)
    rate = {name: total / sum(one) for name, one in taken.items()}
    ratio = {name: middle_ratio(taken["bare"], taken[name]) for name in ("producer", "lists")}
    shape = f"{active} conversations at a time" if active > 1 else "one conversation after the other"
    bare = (
        f"bare redis-py, an XADD of JSON per event in pipelines of 1,000: {rate['bare']:,.0f} with hiredis, "
        f"{rate['python']:,.0f} without"
    )
    figures = {f"{name}_events_per_s": value for name, value in rate.items()}
    return [
        Row(
            what=f"Producer.append(), validated and acknowledged, {shape}",
            events=total,
            value=shown_rate(total, sum(taken["producer"])),
            against=f"{bare}; ratio {ratio['producer']:.2f}",
            target=f"≥ {PRODUCER_RATIO}×, ≥ {PRODUCER_RATE:,} events/s",
            met=ratio["producer"] >= PRODUCER_RATIO and rate["producer"] >= PRODUCER_RATE,
            figures={**figures, "ratio": ratio["producer"]},
        ),
        Row(
            what=f"append_many of ready lists of {LIST_EVENTS}, {shape}",
            events=total,
            value=shown_rate(total, sum(taken["lists"])),
            against=f"the same bare XADDs; ratio {ratio['lists']:.2f}",
            target=f"≥ {LISTS_RATIO:.0f}×",
            met=ratio["lists"] >= LISTS_RATIO,
            figures={**figures, "ratio": ratio["lists"]},
        ),
    ]


def _ways(config: Any, server: RedisServer, slow: Any, given: Events) -> dict[str, Callable[[], object]]:
    """The calls that are compared; connections and lists are ready before."""
    ready = [Event(**event) for event in given]
    lists = [ready[start : start + LIST_EVENTS] for start in range(0, len(ready), LIST_EVENTS)]
    client = Client(config)
    client.append(**given[0])
    producer = Producer(config)
    producer.append(**given[0])
    producer.flush()

    def produce() -> None:
        append = producer.append
        for event in given:
            append(**event)
        producer.flush()

    def in_lists() -> None:
        for one in lists:
            client.append_many(one)
        client.close()
        producer.close()

    return {
        "producer": produce,
        "bare": lambda: pipelined(server.client, given),
        "lists": in_lists,
        "python": lambda: pipelined(slow, given),
    }


def _empty(server: RedisServer) -> None:
    """Make room for the next round: what is measured takes no more memory than one."""
    for key in server.client.scan_iter(count=10_000):
        if key == STREAM.encode() or b":log" in key or b":c:" in key:
            server.client.unlink(key)


def _peer(bench: Bench, *, peer: type[Peer], count: int) -> Sequence[Row]:
    what = f"{peer.title}, from Python values"
    if peer.missing():
        return [Row(what=what, events=count, value=peer.missing())]
    total = taken_s = 0.0
    with peer(bench.folder(peer.name)) as store:
        store.append(list(islice(next(rounds(bench, 1000)), 100)))
        for given in rounds(bench, count):
            with quiet():
                taken_s += seconds(partial(store.append, given))
            total += len(given)
    rate = total / taken_s
    return [Row(what=what, events=int(total), value=f"{rate:,.0f} events/s", figures={"producer_events_per_s": rate})]


def _derived(results: Sequence[Result]) -> list[Row]:
    """Against the quickest peer, where all were measured."""
    first = [one for one in results if one.events <= FIRST]
    own = [row.figures["producer_events_per_s"] for one in first if one.case == "mixed" for row in one.rows[:1] if row.figures]
    peers = {
        row.what: row.figures["producer_events_per_s"]
        for one in first
        for row in one.rows
        if "ratio" not in row.figures and row.figures
    }
    if not own or not peers:
        return []
    quickest = max(peers, key=lambda name: peers[name])
    ratio = own[-1] / peers[quickest]
    value = f"{ratio:.2f}× {quickest.partition(',')[0]}"
    return [Row(what="Producer.append() against the quickest peer", value=value, target="ahead of every peer", met=ratio > 1)]


TABLE = Table(
    name="producer",
    title="Producer: events by the thousand from one process",
    about="Each starts from Python values, one dict per event, in one process; the time ends when all are acknowledged. "
    "Thermocline validates every field meanwhile, the others store what they are given. Rounds of 50,000 events in which all "
    "ways take turns; ratios are medians over the rounds.",
    sizes=(FIRST, LARGER),
    cases=_cases,
    derived=_derived,
)
