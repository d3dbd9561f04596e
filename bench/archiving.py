"""Archive against a bare sorted ZSTD Parquet write of the same rows by DuckDB alone."""

from __future__ import annotations

import time
from pathlib import Path

from thermocline.archiver.archive import Archiver
from thermocline.archiver.lease import Lease
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.tiers.duck import connect, quoted
from thermocline.tiers.opening import Tiers, open_tiers

from .appending import fill
from .timing import Figure

DAY_US = 86_400_000_000
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}


def archive_figures(count: int, folder: Path) -> list[Figure]:
    """Archive `count` events of a week, keeping all and by the default policy; the same rows written by DuckDB in between."""
    figures = []
    for name, sampling in (("everything kept", KEEP_ALL), ("the default policy", {"rules": []})):
        settings = load(
            {
                "data_dir": folder / "archive",
                "namespace": name.replace(" ", "-"),
                "sampling": sampling,
                "warm": {"window_days": 10_000},
            },
            environ={},
        )
        fill(settings, count, seed=5)
        with open_tiers(settings) as tiers:
            Worker(tiers).once()
            rows, bare_s = _bare(tiers, folder)
            lease = Lease(settings.namespace_dir, tiers.ledger)
            archiver = Archiver(tiers, lease.epoch)
            tiers.iceberg.ensure()  # made once in the life of a namespace
            begin = time.perf_counter()
            kept = 0
            while batch := archiver.step(before_us=time.time_ns() // 1000 + DAY_US):
                kept += batch.events_kept
            taken_s = time.perf_counter() - begin
            lease.release()
        bare = f"`COPY (… ORDER BY …) TO … (COMPRESSION zstd)` of all rows: {rows / bare_s:,.0f}"
        figures.append(
            Figure(
                what=f"archive, {name}: {kept:,} of {rows:,} events, rollups, read-back and Iceberg included",
                value=f"{rows / taken_s:,.0f} events/s",
                against=f"{bare}; ratio {bare_s / taken_s:.2f}",
            )
        )
    return figures


def _bare(tiers: Tiers, folder: Path) -> tuple[int, float]:
    """(rows, seconds) of writing every segment's rows as one sorted Parquet file."""
    con = connect(
        memory_bytes=tiers.settings.warm.memory_bytes_max, threads=tiers.settings.warm.threads, temp_dir=str(folder / "spill")
    )
    parts = []
    for number, segment in enumerate(tiers.ledger.view().segments):
        con.execute(f"ATTACH {quoted(tiers.warm.path(segment.segment_id))} AS s{number} (READ_ONLY)")
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
    return sum(one.rows for one in tiers.ledger.view().segments), taken_s
