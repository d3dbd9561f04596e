"""Settle: from Redis to a checked segment in the ledger, against DuckDB alone and against the naive pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bench import stores
from bench.case import Bench, Case, Table
from bench.measure import Clock, middle_ratio
from bench.peers.naive import Naive
from bench.results import Result, Row
from bench.servers import RedisServer
from bench.workload import Workload, kwargs_of
from thermocline.config import Settings
from thermocline.event import COLUMNS
from thermocline.tiers.duck import connect
from thermocline.tiers.opening import Tiers

PAGE_BYTES = 4 << 20
ROUNDS_MIN = 5
RATIO, RATE, NAIVE_RATIO = 0.7, 200_000, 30
NAIVE_LIMIT_S = {True: 5.0, False: 60.0}


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case("own", size, partial(_own, size=size)), Case("naive", size, partial(_naive, size=size), product=False)]


class Settled:
    """A store with `size` events in segments of level 0, and what settling them took."""

    def __init__(self, bench: Bench, size: int) -> None:
        folder = bench.folder("settle")
        self.server = RedisServer(folder / "redis", appendfsync="always")  # so that settling need not wait for its disk
        self.config = stores.settings(folder, self.server)
        self.counts: list[int] = []
        self.settle_s: list[float] = []
        self.cpu_s: list[float] = []
        self.bare_s: list[float] = []
        self.bare_cpu_s: list[float] = []
        batch = min(self.config.warm.settle_batch_events, -(-size // ROUNDS_MIN))
        for table in Workload(size, end_us=bench.end_us).arrivals(rows_max=batch):
            stores.append(self.config, [table])
            with stores.working(self.config) as steps:
                self._round(steps, folder)

    def _round(self, steps: stores.Steps, folder: Path) -> None:
        """DuckDB alone, then we, with the same lines; the next round the other way round."""
        lines = _lines(steps.tiers)
        first = len(self.counts) % 2 == 0
        if first:
            self._bare(lines, folder)
        count, wall_s, cpu_s = steps.settle()
        if not first:
            self._bare(lines, folder)
        if count != len(lines):
            raise ValueError(f"{count} events settled, {len(lines)} waited")
        self.counts.append(count)
        self.settle_s.append(wall_s)
        self.cpu_s.append(cpu_s)
        steps.tidy()

    def _bare(self, lines: pa.Table, folder: Path) -> None:
        clock = Clock()
        _bare(lines, folder, self.config)
        self.bare_s.append(clock.wall_s)
        self.bare_cpu_s.append(clock.cpu_s)

    def close(self) -> None:
        self.server.close()


def settled(bench: Bench, size: int) -> Settled:
    """Shared with the table of merges."""
    made: Settled = bench.shared(("", "settled", size), lambda: Settled(bench, size))
    return made


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    made = settled(bench, size)
    total, taken_s, bare_s = sum(made.counts), sum(made.settle_s), sum(made.bare_s)
    ratio = middle_ratio(made.bare_s, made.settle_s)
    cpu = f"CPU {sum(made.cpu_s) / total * 1e6:.1f} against {sum(made.bare_cpu_s) / total * 1e6:.1f} µs an event"
    return [
        Row(
            what="settle, from Redis to a checked segment in the ledger",
            events=total,
            value=f"{total / taken_s:,.0f} events/s",
            against=f"`CREATE TABLE … FROM from_json(…) ORDER BY` of the same lines in Arrow: {total / bare_s:,.0f}; "
            f"ratio {ratio:.2f}; {cpu}",
            target=f"≥ {RATIO}, ≥ {RATE:,} events/s",
            met=ratio >= RATIO and total / taken_s >= RATE,
            note=f"{len(made.counts)} rounds of {made.counts[0]:,}",
            figures={"settle_events_per_s": total / taken_s, "bare_events_per_s": total / bare_s, "ratio": ratio},
        )
    ]


def _naive(bench: Bench, *, size: int) -> Sequence[Row]:
    limit_s = min(NAIVE_LIMIT_S[bench.quick], size / 20_000)
    with Naive(bench.folder("naive")) as naive:
        for table in Workload(min(size, 50_000), end_us=bench.end_us).arrivals():
            naive.append(kwargs_of(table)[: 5000 if bench.quick else None])
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


def _lines(tiers: Tiers) -> pa.Table:
    """(conversation_id, line) of every event that waits."""
    tables = []
    for cut, state in zip(tiers.hot.cut(), tiers.ledger.view().shards, strict=True):
        after = state.position
        while (page := tiers.hot.page(cut.shard, after, cut.last, bytes_max=PAGE_BYTES)).num_rows:
            tables.append(page.select(["conversation_id", "payload", "position_ms", "position_seq"]))
            last = page.slice(page.num_rows - 1).to_pylist()[0]
            after = type(cut.last)(last["position_ms"], last["position_seq"])
    blocks = pa.concat_tables(tables).combine_chunks()
    split = pc.split_pattern(blocks["payload"], "\n").combine_chunks()
    conversations = blocks["conversation_id"].combine_chunks().take(pc.list_parent_indices(split))
    return pa.table({"conversation_id": conversations, "line": pc.list_flatten(split)})


def _bare(lines: pa.Table, folder: Path, settings: Settings) -> None:
    """The least one could do: parse, sort and store in batches of one settle."""
    spec = "{" + ", ".join(f'"{column.name}": "{column.line_type}"' for column in COLUMNS if column.in_line) + "}"
    con = connect(memory_bytes=settings.warm.memory_bytes_max, threads=settings.warm.threads)
    size = settings.warm.settle_batch_events
    for start in range(0, len(lines), size):
        target = folder / f"bare-{time.monotonic_ns()}.duckdb"
        con.register("lines", lines.slice(start, size))
        con.execute(f"ATTACH '{target}' AS bare (STORAGE_VERSION 'v1.5.0')")
        select = f"SELECT conversation_id, unnest(from_json(line, '{spec}')) FROM lines"
        con.execute(f"CREATE TABLE bare.events AS FROM ({select}) ORDER BY conversation_id, timestamp")
        con.execute("CHECKPOINT bare")
        con.execute("DETACH bare")
        con.unregister("lines")
        target.unlink()
    con.close()


TABLE = Table(
    name="settle",
    title="Settle: hot to warm",
    about="Events are appended in lists as ten conversations go on at once, then settled: read from Redis, parsed, sorted, "
    "written, read back, synced, listed. DuckDB alone gets the same lines as one Arrow column and only parses, sorts and stores "
    "them. Both take turns, a settle's worth at a time. Redis runs with appendfsync always, so that what was appended may settle "
    "at once.",
    sizes=(1_000_000,),
    cases=_cases,
    quick_events=200_000,
    derived=_derived,
)
