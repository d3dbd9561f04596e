"""Settle against DuckDB alone doing the same parse and sort from lines already in Arrow; then merge."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from thermocline.archiver.worker import Progress, Worker
from thermocline.config import Settings
from thermocline.event import COLUMNS
from thermocline.tiers.duck import connect
from thermocline.tiers.opening import Tiers, open_tiers

from .appending import fill
from .timing import Figure, seconds

PAGE_BYTES = 4 << 20
ROUNDS = 4


class _Clock:
    """When each step of `Worker.once` ended, and how long it only waited (for Redis to have its newest events on disk)."""

    def __init__(self) -> None:
        self.begin_s = time.perf_counter()
        self.waited_s = 0.0
        self.ends_s: dict[str, float] = {}

    def sleep(self, pause_s: float) -> None:
        time.sleep(pause_s)
        self.waited_s += pause_s

    def tell(self, progress: Progress) -> None:
        self.ends_s[progress.step] = time.perf_counter()


def settle_figures(settings: Settings, count: int, folder: Path, *, all_repeated: bool = False) -> list[Figure]:
    """Append `count` events in ROUNDS parts; each is parsed and stored by DuckDB alone, then settled and merged by the worker.

    The parts alternate, so that a machine which is slow for a while is slow for both.
    """
    bare_s = settle_s = merge_s = 0.0
    events = merged = 0
    for number in range(ROUNDS):
        fill(settings, count // ROUNDS, seed=number, all_repeated=all_repeated)
        with open_tiers(settings) as tiers:
            waiting, taken_s = _bare_figures(tiers, folder)
            clock = _Clock()
            report = Worker(tiers, sleep=clock.sleep).once(clock.tell)
        assert report.settled_events == waiting, report.problem
        events, merged, bare_s = events + waiting, merged + report.merged_events, bare_s + taken_s
        settle_s += clock.ends_s["settle"] - clock.begin_s - clock.waited_s
        merge_s += clock.ends_s.get("merge", clock.ends_s["settle"]) - clock.ends_s["settle"]
    ratio = bare_s / settle_s
    figures = [
        Figure(
            what="settle, from Redis to a checked segment in the ledger" + ", every content one of 500" * all_repeated,
            value=f"{events / settle_s:,.0f} events/s",
            against=f"`INSERT … SELECT from_json(…) ORDER BY`, same lines in Arrow: {events / bare_s:,.0f}; ratio {ratio:.2f}",
        )
    ]
    if merged and not all_repeated:
        figures.append(Figure(what="merge, rollups and checks included", value=f"{merged / merge_s:,.0f} events/s"))
    return figures


def _bare_figures(tiers: Tiers, folder: Path) -> tuple[int, float]:
    """(events that wait, seconds that `_bare` takes for them)."""
    lines = _lines(tiers)
    return len(lines), seconds(lambda: _bare(lines, folder, tiers.settings))


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
        con.register("lines", lines.slice(start, size))
        con.execute(f"ATTACH '{folder}/bare-{time.monotonic_ns()}.duckdb' AS bare (STORAGE_VERSION 'v1.5.0')")
        select = f"SELECT conversation_id, unnest(from_json(line, '{spec}')) FROM lines"
        con.execute(f"CREATE TABLE bare.events AS FROM ({select}) ORDER BY conversation_id, timestamp")
        con.execute("CHECKPOINT bare")
        con.execute("DETACH bare")
        con.unregister("lines")
    con.close()
