"""Settle: from Redis to a checked segment in the ledger, against DuckDB alone and against the naive pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.case import Bench, Case, Table
from bench.measure import middle_ratio
from bench.moved import moved
from bench.peers.naive import Naive
from bench.results import Result, Row
from bench.workload import Workload, kwargs_of

RATIO, RATE, NAIVE_RATIO = 0.7, 200_000, 30
NAIVE_LIMIT_S = {True: 1.0, False: 60.0}


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case("own", size, partial(_own, size=size)), Case("naive", size, partial(_naive, size=size), product=False)]


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    rounds = moved(bench, size).settled
    total, taken_s = sum(one.step.events for one in rounds), sum(one.step.wall_s for one in rounds)
    compared = [one for one in rounds if one.alone]
    alone_rate = sum(one.step.events for one in compared) / sum(one.alone_s for one in compared)
    ratio = middle_ratio([one.alone_s for one in compared], [one.step.wall_s for one in compared])
    cpu_us = sum(one.step.cpu_s for one in rounds) / total * 1e6
    alone_cpu_us = sum(one.alone_cpu_s for one in compared) / sum(one.step.events for one in compared) * 1e6
    return [
        Row(
            what="settle, from Redis to a checked segment in the ledger",
            events=total,
            value=f"{total / taken_s:,.0f} events/s",
            against=f"`CREATE TABLE … FROM from_json(…) ORDER BY` of the same lines in Arrow: {alone_rate:,.0f}; "
            f"ratio {ratio:.2f}; CPU {cpu_us:.1f} against {alone_cpu_us:.1f} µs an event",
            target=f"≥ {RATIO}, ≥ {RATE:,} events/s",
            met=ratio >= RATIO and total / taken_s >= RATE,
            note=f"{len(rounds)} rounds of {rounds[0].step.events:,}, {len(compared)} of them compared",
            figures={"settle_events_per_s": total / taken_s, "bare_events_per_s": alone_rate, "ratio": ratio},
        )
    ]


def _naive(bench: Bench, *, size: int) -> Sequence[Row]:
    limit_s = min(NAIVE_LIMIT_S[bench.quick], size / 20_000)
    with Naive(bench.folder("naive")) as naive:
        for table in Workload(min(size, 50_000), end_us=bench.end_us).arrivals():
            naive.append(kwargs_of(table)[: 2000 if bench.quick else None])
        count, taken_s = naive.settle(limit_s)
    rate = count / taken_s
    return [
        Row(
            what="naive pipeline: XREAD, INSERT row by row",
            events=count,
            value=f"{rate:,.0f} events/s",
            note=f"measured on {count:,} events, at most {limit_s:g} s",
            figures={"naive_events_per_s": rate},
        )
    ]


def _derived(results: Sequence[Result]) -> list[Row]:
    figures = {name: value for one in results for row in one.rows for name, value in row.figures.items()}
    if not {"settle_events_per_s", "naive_events_per_s"} <= figures.keys():
        return []
    ratio = figures["settle_events_per_s"] / figures["naive_events_per_s"]
    what = "settle against the naive pipeline"
    return [Row(what=what, value=f"{ratio:.0f}×", target=f"≥ {NAIVE_RATIO}×", met=ratio >= NAIVE_RATIO)]


TABLE = Table(
    name="settle",
    title="Settle: hot to warm",
    about="Events are appended in lists as ten conversations go on at once, then settled: read from Redis, parsed, sorted, "
    "written, read back, synced, listed. DuckDB alone gets the same lines as one Arrow column and only parses, sorts and stores "
    "them. Both take turns, a settle's worth at a time. Redis runs with appendfsync always, so that what was appended may settle "
    "at once.",
    sizes=(1_000_000,),
    cases=_cases,
    derived=_derived,
)
