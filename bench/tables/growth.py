"""Growth: what settle, merge and archive cost per event as a store grows, how often an event is rewritten, files, ledger rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bench import filling, reads, stores
from bench.case import DAY_US, Bench, Case, Table
from bench.moved import EVERYTHING, moved, worker_settings
from bench.results import Result, Row
from bench.workload import DAYS, Workload
from thermocline.config import Settings

WHOLE_MAX = 10_000_000
"""Of more events most are loaded, as the tables of reads load them, and so many more come on top:"""
ADDED_EVENTS = 2_000_000
COST_GROWTH, REWRITES = 1.3, 3.0
STEPS = ("settle", "merge", "archive")


def _cases(size: int, quick: bool) -> list[Case]:
    if size > WHOLE_MAX:
        return [Case("own", size, partial(_on_top, size=size), group=f"{reads.GROUP}/~ last, as it changes the store")]
    return [Case("own", size, partial(_own, size=size))]


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    made = moved(bench, size)
    settles, merges = [one.step for one in made.settled], [*made.merged_meanwhile, made.merged.step]
    rows = _ledger_rows(made.config.namespace_dir / "ledger.db")
    [archive, *_] = made.archived(EVERYTHING)
    rewrites = sum(one.events for one in merges) / size
    most, sealed = max(one.segments for one in settles), made.merged.step.segments
    note = f"{sealed} when all days are sealed, {rows:,} rows in the ledger, {archive.step.files} files archived"
    return [
        *_costs({"settle": settles, "merge": merges, "archive": [archive.step]}, size),
        Row(
            what="merge, times an event is written again",
            events=size,
            value=f"{rewrites:.2f}",
            target=f"≤ {REWRITES:.0f}",
            met=rewrites <= REWRITES,
            figures={"rewrites": rewrites},
        ),
        _counts(size, made.config, most, note),
    ]


def _on_top(bench: Bench, *, size: int) -> Sequence[Row]:
    """The same steps with ADDED_EVENTS more of the last day, and the first day archived, in a store that has `size` already."""
    made = reads.own(bench, size)
    made.give_up()
    config = worker_settings(made.folder, made.server)
    load = Workload(ADDED_EVENTS, end_us=bench.end_us, seed=2, days=1)
    settles, merges, segments = [], [], 0
    with stores.working(config) as steps:
        for table in load.arrivals(rows_max=config.warm.settle_batch_events):
            filling.append(config, [_others(table)])
            settles.append(steps.settle())
            merges.append(steps.merge(force=False))
            steps.tidy()
            segments = max(segments, len(steps.tiers.ledger.view().segments))
        rows = _ledger_rows(config.namespace_dir / "ledger.db")
        archive = steps.archive(before_us=made.load.start_us + DAY_US)
        files = len(steps.tiers.ledger.view().files)
    if sum(one.events for one in settles) != ADDED_EVENTS or not archive.events:
        raise ValueError(f"{settles} of {ADDED_EVENTS:,} events, {archive}")
    return [
        *_costs({"settle": settles, "merge": merges, "archive": [archive]}, size),
        _counts(size, config, segments, f"{rows:,} rows in the ledger, {files} files archived from one day"),
    ]


def _others(table: pa.Table) -> pa.Table:
    """The rows as events of conversations that no other workload has."""
    names = pc.binary_join_element_wise("later", table["conversation_id"], "-")
    return table.set_column(table.schema.get_field_index("conversation_id"), "conversation_id", names)


def _costs(steps: dict[str, Sequence[stores.Spent]], size: int) -> list[Row]:
    """A row for each kind of step; of merge: per event written."""
    rows = []
    for name, spent in steps.items():
        events = sum(one.events for one in spent)
        wall_us, cpu_us = (
            sum(times) / max(events, 1) * 1e6 for times in zip(*((one.wall_s, one.cpu_s) for one in spent), strict=True)
        )
        rows.append(
            Row(
                what=f"{name}, cost per event",
                events=size,
                value=f"{wall_us:.2f} µs",
                note=f"{events:,} events; CPU {cpu_us:.2f} µs",
                figures={f"{name}_us_per_event": wall_us},
            )
        )
    return rows


def _counts(size: int, config: Settings, segments: int, note: str) -> Row:
    bound = segments_bound(size, config)
    return Row(
        what="segments at most, while settling",
        events=size,
        value=f"{segments}",
        target=f"≤ {bound}",
        met=segments <= bound,
        note=note,
        figures={"segments": segments},
    )


def segments_bound(events: int, config: Settings) -> int:
    """Small segments as archiver/plan.py bounds them while every day of the week is being filled, and full ones."""
    warm = config.warm
    return 3 * (warm.fan_in - 1) + 2 + 3 * (DAYS + 1) + (DAYS + 1) + 2 * events // warm.segment_rows_max


def _ledger_rows(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as con:
        names = [
            name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        ]
        return sum(con.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names)


def _derived(results: Sequence[Result]) -> list[Row]:
    rows = []
    for name in STEPS:
        key = f"{name}_us_per_event"
        by_size = {row.events: row.figures[key] for one in results if not one.quick for row in one.rows if key in row.figures}
        sizes = sorted(by_size)
        if len(sizes) > 1 and by_size[sizes[0]]:
            ratio = by_size[sizes[-1]] / by_size[sizes[0]]
            what = f"{name}, cost per event at {sizes[-1] // 1_000_000} M against {sizes[0] // 1_000_000} M"
            rows.append(Row(what=what, value=f"{ratio:.2f}×", target=f"≤ {COST_GROWTH}×", met=ratio <= COST_GROWTH))
    return rows


TABLE = Table(
    name="growth",
    title="Growth",
    about="Events of a week are appended in the order in which they came, settled 200,000 at a time and merged when "
    "it is due (at 1 M events when all is settled); then every day is sealed, and everything archived, all of it kept. At 100 M "
    "events most are loaded, as for the "
    "tables of reads, then 2 M more of the last day are appended, settled and merged, and the first day is archived. The cost of "
    "a merge is per event that it writes. The bound of segments is 3 × (fan_in − 1) + 2 + 3 for "
    "each day being filled + 1 for each sealed day + 2 × events / segment_rows_max for full ones; rows in the ledger are "
    "those of the segments, at most one range per shard each, and of the trash, which a purge empties after its grace.",
    sizes=(1_000_000, 10_000_000, 100_000_000),
    cases=_cases,
    derived=_derived,
)
