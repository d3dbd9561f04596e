"""Merge: segments written again as fewer, larger ones with rollups, against DuckDB copying the same rows sorted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench import stores
from bench.case import Bench, Case, Table
from bench.measure import Clock
from bench.results import Row
from thermocline.tiers.duck import connect, quoted

from .settle import settled

RATE = 600_000
BARE_MEMORY_BYTES = 4 << 30
"""Of DuckDB alone, which sorts everything at once; a merge has warm.memory_bytes_max."""


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case("own", size, partial(_own, size=size))]


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    made = settled(bench, size)
    with stores.working(made.config) as steps:
        before_s = _bare(steps, bench)
        events, wall_s, cpu_s = steps.merge(force=True)
        after_s = _bare(steps, bench)
    bare_s = (before_s + after_s) / 2
    ratio = bare_s / wall_s * events / size if wall_s else 0
    return [
        Row(
            what="merge of unmerged segments into days, rollups and checks included",
            events=events,
            value=f"{events / wall_s:,.0f} events/s" if events else "nothing to merge",
            against=f"DuckDB alone, the same rows `ORDER BY` into one file: {size / bare_s:,.0f}; ratio {ratio:.2f}; "
            f"CPU {cpu_s / max(events, 1) * 1e6:.1f} µs an event",
            target=f"≥ {RATE:,} events/s",
            met=bool(events) and events / wall_s >= RATE,
            figures={"merge_events_per_s": events / wall_s if wall_s else 0, "bare_events_per_s": size / bare_s, "ratio": ratio},
        )
    ]


def _bare(steps: stores.Steps, bench: Bench) -> float:
    """Seconds of writing the rows of all segments, sorted, into one new file."""
    warm, folder = steps.tiers.settings.warm, bench.folder("bare")
    con = connect(memory_bytes=BARE_MEMORY_BYTES, threads=warm.threads, temp_dir=str(folder / "spill"))
    parts = []
    for number, segment in enumerate(steps.tiers.ledger.view().segments):
        con.execute(f"ATTACH {quoted(steps.tiers.warm.path(segment.segment_id))} AS s{number} (READ_ONLY)")
        parts.append(f"FROM s{number}.events")
    clock = Clock()
    con.execute(f"ATTACH '{folder / 'bare.duckdb'}' AS bare (STORAGE_VERSION 'v1.5.0')")
    con.execute(f"CREATE TABLE bare.events AS FROM ({' UNION ALL '.join(parts)}) ORDER BY conversation_id, timestamp, seq")
    con.execute("CHECKPOINT bare")
    taken_s = clock.wall_s
    con.close()
    (folder / "bare.duckdb").unlink()
    return taken_s


TABLE = Table(
    name="merge",
    title="Merge: warm to warm",
    about="What the settle table settled, merged at once. Each output is sorted, checked against its inputs, read back, "
    "synced and has rollups; DuckDB alone writes the rows of the same segments in order and nothing else, before and after.",
    sizes=(1_000_000,),
    cases=_cases,
    quick_events=200_000,
)
