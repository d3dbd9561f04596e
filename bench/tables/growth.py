"""Growth: what settle, merge and archive cost per event as a store grows, how often an event is rewritten, files, ledger rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from bench import stores
from bench.case import Bench, Case, Table
from bench.results import Result, Row
from bench.servers import RedisServer
from bench.workload import DAYS, Workload
from thermocline.config import Settings

from .archive import archived

ROUND_EVENTS = 400_000
ROUNDS_MIN = 3
COST_GROWTH, REWRITES = 1.3, 3.0
STEPS = ("settle", "merge", "archive")


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case("own", size, partial(_own, size=min(size, 150_000) if quick else size))]


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    folder = bench.folder("growth")
    warm = {**stores.WARM_ONLY, "purge_grace_s": 1}
    spent: dict[str, list[float]] = {"settle": [0, 0, 0], "merge": [0, 0, 0]}
    with RedisServer(folder / "redis", appendfsync="always") as server:
        config = stores.settings(folder, server, warm=warm, hot={"cache_window_s": 5}, sampling=stores.KEEP_ALL)
        segments = 0
        for table in Workload(size, end_us=bench.end_us).arrivals(rows_max=min(ROUND_EVENTS, -(-size // ROUNDS_MIN))):
            stores.append(config, [table])
            with stores.working(config) as steps:
                _add(spent["settle"], steps.settle())
                _add(spent["merge"], steps.merge(force=False))
                steps.tidy()
                segments = max(segments, len(steps.tiers.ledger.view().segments))
        with stores.working(config.model_copy(update={"warm": config.warm.model_copy(update={"seal_after_s": 0.0})})) as steps:
            _add(spent["merge"], steps.merge(force=True))
            live = len(steps.tiers.ledger.view().segments)
            rows = _ledger_rows(config.namespace_dir / "ledger.db")
            _, archive_s = archived(steps)
            files = len(steps.tiers.ledger.view().files)
    if spent["settle"][0] != size:
        raise ValueError(f"{spent['settle'][0]:,.0f} events settled, {size:,} were appended")
    rewrites = spent["merge"][0] / size
    cost_us = {name: one[1] / size * 1e6 for name, one in spent.items()} | {"archive": archive_s / size * 1e6}
    cpu_us = {name: one[2] / size * 1e6 for name, one in spent.items()}
    bound = segments_bound(size, config)
    return [
        *(
            Row(
                what=f"{name}, cost per event",
                events=size,
                value=f"{cost_us[name]:.2f} µs",
                note=f"CPU {cpu_us[name]:.2f} µs" if name in cpu_us else "",
                figures={f"{name}_us_per_event": cost_us[name]},
            )
            for name in STEPS
        ),
        Row(
            what="merge, times an event is written again",
            events=size,
            value=f"{rewrites:.2f}",
            target=f"≤ {REWRITES:.0f}",
            met=rewrites <= REWRITES,
            figures={"rewrites": rewrites},
        ),
        Row(
            what="segments at most, while settling",
            events=size,
            value=f"{segments}",
            target=f"≤ {bound}",
            met=segments <= bound,
            note=f"{live} when all days are sealed, {rows:,} rows in the ledger, {files} files archived from them",
            figures={"segments": segments, "ledger_rows": rows, "files": files},
        ),
    ]


def _add(total: list[float], more: Sequence[float]) -> None:
    for place, value in enumerate(more):
        total[place] += value


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
    about="Events of a week are appended in the order in which they came, settled at most 400,000 at a time and merged when "
    "it is due; then every day is sealed, and everything archived. The bound of segments is 3 × (fan_in − 1) + 2 + 3 for "
    "each day being filled + 1 for each sealed day + 2 × events / segment_rows_max for full ones; rows in the ledger are "
    "those of the segments, at most one range per shard each, and of the trash, which a purge empties after its grace.",
    sizes=(1_000_000, 10_000_000, 100_000_000),
    cases=_cases,
    derived=_derived,
)
