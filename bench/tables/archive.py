"""Archive: warm to sampled Parquet, against a bare sorted ZSTD Parquet write of the same rows by DuckDB alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

from bench.case import Bench, Case, Table
from bench.measure import middle_ratio
from bench.moved import POLICIES, moved
from bench.results import Row
from bench.tables.merge import PART

RATIO = 0.7
ROUNDS = 3


def _cases(size: int, quick: bool) -> list[Case]:
    return [Case(f"policy-{number}", size, partial(_own, size=size, policy=policy)) for number, policy in enumerate(POLICIES)]


def _own(bench: Bench, *, size: int, policy: str) -> Sequence[Row]:
    rounds = moved(bench, size).archived(policy, 1 if bench.quick else ROUNDS)
    taken, alone = [one.step.wall_s for one in rounds], [one.alone_s for one in rounds]
    ratio = middle_ratio(alone, taken)
    rows = PART if bench.quick else "all rows"
    return [
        Row(
            what=f"archive, {policy}, rollups, read-back and Iceberg included",
            events=size,
            value=f"{size / median(taken):,.0f} events/s",
            against=f"`COPY (… ORDER BY …) TO … (COMPRESSION zstd)` of {rows}: {size / median(alone):,.0f}; ratio {ratio:.2f}",
            target=f"≥ {RATIO}",
            met=ratio >= RATIO,
            note=f"{rounds[0].step.kept:,} kept; median of {len(rounds)}",
            figures={"archive_events_per_s": size / median(taken), "bare_events_per_s": size / median(alone), "ratio": ratio},
        )
    ]


TABLE = Table(
    name="archive",
    title="Archive: warm to cold",
    about="What the table of merges left, a week of sealed days, archived into a local folder in one go, each time from a copy; "
    "the bare copy runs before and after each round over the same segments; in the quick run there is one round, and one copy "
    f"before it, of {PART}.",
    sizes=(1_000_000,),
    cases=_cases,
)
