"""Merge: segments written again as fewer, larger ones with rollups, against DuckDB copying the same rows sorted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.case import Bench, Case, Table
from bench.moved import moved
from bench.results import Row

RATE = 600_000
PART = "the rows of two segments in five"
"""What DuckDB alone writes in the quick run."""


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case("own", size, partial(_own, size=size))]


def _own(bench: Bench, *, size: int) -> Sequence[Row]:
    found = moved(bench, size).merged
    rows = PART if bench.quick else "the same rows"
    step, rate, alone = found.step, found.step.events / found.step.wall_s, size / found.alone_s
    return [
        Row(
            what="merge of unmerged segments into days, rollups and checks included",
            events=step.events,
            value=f"{rate:,.0f} events/s" if step.events else "nothing to merge",
            against=f"DuckDB alone, {rows} `ORDER BY` into one file: {alone:,.0f}; ratio {rate / alone:.2f}; "
            f"CPU {step.cpu_s / max(step.events, 1) * 1e6:.1f} µs an event",
            target=f"≥ {RATE:,} events/s",
            met=rate >= RATE,
            figures={"merge_events_per_s": rate, "bare_events_per_s": alone, "ratio": rate / alone},
        )
    ]


TABLE = Table(
    name="merge",
    title="Merge: warm to warm",
    about="What the settle table settled, merged at once. Each output is sorted, checked against its inputs, read back, "
    "synced and has rollups; DuckDB alone writes the rows of the same segments in order and nothing else, before and after; in "
    f"the quick run once, and {PART}.",
    sizes=(1_000_000,),
    cases=_cases,
)
