"""Archive against a bare sorted ZSTD Parquet write of the same rows by DuckDB alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from thermocline.archiver.archive import Archiver
from thermocline.archiver.lease import Lease
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.tiers.duck import connect, quoted
from thermocline.tiers.ledger import Segment
from thermocline.tiers.opening import Tiers, open_tiers

from .appending import fill
from .timing import Figure

DAY_US = 86_400_000_000
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}


ROUNDS = 3


def archive_figures(count: int, folder: Path) -> list[Figure]:
    """Archive `count` events of a week, keeping all and by the default policy; in between DuckDB writes the same rows."""
    figures = []
    for name, sampling in (("everything kept", KEEP_ALL), ("the default policy", {"rules": []})):
        rounds = [_round(count, folder / f"{name.replace(' ', '-')}-{number}", sampling) for number in range(ROUNDS)]
        rows, kept = rounds[0][:2]
        taken_s, bare_s = (median(one[place] for one in rounds) for place in (2, 3))
        ratio = median(bare / taken for _, _, taken, bare in rounds)
        bare = f"`COPY (… ORDER BY …) TO … (COMPRESSION zstd)` of all rows: {rows / bare_s:,.0f}"
        figures.append(
            Figure(
                what=f"archive, {name}: {kept:,} of {rows:,} events, rollups, read-back and Iceberg included",
                value=f"{rows / taken_s:,.0f} events/s",
                against=f"{bare}; ratio {ratio:.2f}",
            )
        )
    return figures


def _round(count: int, folder: Path, sampling: dict[str, Any]) -> tuple[int, int, float, float]:
    """(events, of them kept, seconds to archive them, seconds of the bare write) of a new data directory."""
    settings = load({"data_dir": folder, "sampling": sampling, "warm": {"window_days": 10_000}}, environ={})
    fill(settings, count, seed=5)
    with open_tiers(settings) as tiers:
        Worker(tiers).once()
        segments = tiers.ledger.view().segments
        lease = Lease(settings.namespace_dir, tiers.ledger)
        archiver = Archiver(tiers, lease.epoch)
        tiers.iceberg.ensure()  # made once in the life of a namespace
        before_s = _bare(tiers, segments, folder)
        begin = time.perf_counter()
        kept = 0
        while batch := archiver.step(before_us=time.time_ns() // 1000 + DAY_US):
            kept += batch.events_kept
        taken_s = time.perf_counter() - begin
        after_s = _bare(tiers, segments, folder)
        lease.release()
    return sum(one.rows for one in segments), kept, taken_s, (before_s + after_s) / 2


def _bare(tiers: Tiers, segments: Sequence[Segment], folder: Path) -> float:
    """Seconds of writing the segments' rows as one sorted Parquet file."""
    con = connect(
        memory_bytes=tiers.settings.warm.memory_bytes_max, threads=tiers.settings.warm.threads, temp_dir=str(folder / "spill")
    )
    parts = []
    for number, segment in enumerate(segments):
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
    return taken_s
