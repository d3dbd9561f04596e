"""Append: one by one against a bare XADD, in lists, and through a Producer."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from thermocline.config import Settings
from thermocline.event import Event
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.tiers.opening import open_tiers
from thermocline.tiers.redis_link import exchange

from .synthetic import events
from .timing import Figure, latencies_s, percentile, seconds, spread

SINGLES = 5000
LIST_EVENTS = 1000


def append_figures(settings: Settings, count: int, data_dir: Path) -> list[Figure]:
    """Figures of the append path; leaves `count` events appended through append_many."""
    end_us = time.time_ns() // 1000
    few = list(events(SINGLES, end_us=end_us))
    figures = []
    with open_tiers(settings) as tiers, Client(settings) as client:
        connection = tiers.hot.link.connection()

        def bare(number: int) -> None:
            exchange(connection, [("XADD", "bench:bare", "*", "d", orjson.dumps(few[number]))], shown_url="")

        def single(number: int) -> None:
            client.append(**few[number])

        for number in range(200):
            bare(number), single(number)
        pairs = [
            (latencies_s(lambda _, n=number: bare(n), 1), latencies_s(lambda _, n=number: single(n), 1))
            for number in range(SINGLES)
        ]
        raw, own = [one[0] for one, _ in pairs], [two[0] for _, two in pairs]
        ratio = percentile(own, 0.5) / percentile(raw, 0.5)
        figures.append(
            Figure(
                what="append, one event", value=spread(own), against=f"bare XADD, interleaved: {spread(raw)}; ratio {ratio:.2f}"
            )
        )
        tiers.hot.link.call("DEL", "bench:bare")
        connection.disconnect()
    many = list(events(min(count, 200_000), end_us=end_us, seed=2))

    def produce() -> None:
        with Producer(settings) as producer:
            for event in many:
                producer.append(**event)

    taken = seconds(produce)
    figures.append(Figure(what="Producer.append, per event, closed and acknowledged", value=f"{len(many) / taken:,.0f} events/s"))
    lists = [[Event(**event) for event in many[start : start + LIST_EVENTS]] for start in range(0, len(many), LIST_EVENTS)]
    with Client(settings) as client:
        taken = seconds(lambda: [client.append_many(one) for one in lists])
    figures.append(Figure(what=f"append_many, lists of {LIST_EVENTS:,}", value=f"{len(many) / taken:,.0f} events/s"))
    return figures


def fill(settings: Settings, count: int, *, seed: int = 3, all_repeated: bool = False) -> None:
    """Append `count` events of bench/synthetic.py, in lists."""
    end_us = time.time_ns() // 1000
    batch: list[Event] = []
    with Client(settings) as client:
        for event in events(count, end_us=end_us, seed=seed, all_repeated=all_repeated):
            batch.append(Event(**event))
            if len(batch) == 20_000:
                client.append_many(batch)
                batch.clear()
        if batch:
            client.append_many(batch)
