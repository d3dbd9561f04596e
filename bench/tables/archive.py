"""Archive: warm to sampled Parquet, against a bare sorted ZSTD Parquet write of the same rows by DuckDB alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import loader, stores
from bench.case import DAY_US, Bench, Case, Table
from bench.measure import middle_ratio
from bench.results import Row
from bench.servers import RedisServer
from thermocline.archiver.archive import Archiver
from thermocline.tiers.duck import connect, quoted
from thermocline.tiers.ledger import Segment
from thermocline.tiers.opening import Tiers

RATIO = 0.7
ROUNDS = 3
BARE_MEMORY_BYTES = 4 << 30
"""Of DuckDB alone, which sorts everything at once."""
POLICIES: dict[str, dict[str, Any]] = {"everything kept": stores.KEEP_ALL, "the default policy": {"rules": []}}


def _cases(size: int, quick: bool) -> list[Case]:
    return [
        Case(f"policy-{number}", size, partial(_own, size=min(size, 150_000) if quick else size, policy=policy))
        for number, policy in enumerate(POLICIES)
    ]


def _own(bench: Bench, *, size: int, policy: str) -> Sequence[Row]:
    rounds = [_round(bench, size, POLICIES[policy]) for _ in range(1 if bench.quick else ROUNDS)]
    rows, kept = rounds[0][:2]
    taken, bare = [one[2] for one in rounds], [one[3] for one in rounds]
    ratio = middle_ratio(bare, taken)
    return [
        Row(
            what=f"archive, {policy}, rollups, read-back and Iceberg included",
            events=rows,
            value=f"{rows / median(taken):,.0f} events/s",
            against=f"`COPY (… ORDER BY …) TO … (COMPRESSION zstd)` of all rows: {rows / median(bare):,.0f}; ratio {ratio:.2f}",
            target=f"≥ {RATIO}",
            met=ratio >= RATIO,
            note=f"{kept:,} kept; median of {len(rounds)}",
            figures={"archive_events_per_s": rows / median(taken), "bare_events_per_s": rows / median(bare), "ratio": ratio},
        )
    ]


def _round(bench: Bench, size: int, sampling: dict[str, Any]) -> tuple[int, int, float, float]:
    """(events, of them kept, seconds to archive them, seconds of the bare write) of a new store."""
    folder = bench.folder("archive")
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server, sampling=sampling)
        loader.load(loader.workload(size, config, end_us=bench.end_us), config)
        with stores.working(config) as steps:
            tiers = steps.tiers
            segments = tiers.ledger.view().segments
            tiers.iceberg.ensure()  # made once in the life of a namespace
            before_s = bare_s(tiers, segments, folder)
            _, kept, taken_s = archived(steps)
            after_s = bare_s(tiers, segments, folder)
    return size, kept, taken_s, (before_s + after_s) / 2


def archived(steps: stores.Steps, *, before_us: int | None = None) -> tuple[int, int, float]:
    """(events, of them kept, seconds) of archiving every day before that time, or all there is."""
    before_us = before_us or time.time_ns() // 1000 + DAY_US
    archiver = Archiver(steps.tiers, steps.epoch)
    begin, events, kept = time.perf_counter(), 0, 0
    while batch := archiver.step(before_us=before_us):
        events, kept = events + batch.events_in, kept + batch.events_kept
    return events, kept, time.perf_counter() - begin


def bare_s(tiers: Tiers, segments: Sequence[Segment], folder: Path) -> float:
    """Seconds of writing the segments' rows as one sorted Parquet file."""
    warm = tiers.settings.warm
    con = connect(memory_bytes=BARE_MEMORY_BYTES, threads=warm.threads, temp_dir=str(folder / "spill"))
    parts = []
    for number, segment in enumerate(segments):
        path = Path(tiers.warm.path(segment.segment_id))
        con.execute(f"ATTACH {quoted(str(path))} AS s{number} (READ_ONLY)")
        parts.append(f"SELECT * FROM s{number}.events")
    target = folder / "bare.parquet"
    begin = time.perf_counter()
    con.execute(
        f"COPY (SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY conversation_id, timestamp, seq)"
        f" TO {quoted(str(target))} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)"
    )
    taken_s = time.perf_counter() - begin
    target.unlink()
    con.close()
    return taken_s


TABLE = Table(
    name="archive",
    title="Archive: warm to cold",
    about="A week of merged days and a backlog of unmerged segments, archived into a local folder in one go; the bare copy "
    "runs before and after each round over the same segments.",
    sizes=(1_000_000,),
    cases=_cases,
)
