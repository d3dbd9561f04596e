"""Memory of the worker: the most it ever had resident while settling and merging many events, and while archiving a large day."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from bench import loader, stores
from bench.case import Bench, Case, Table
from bench.child import Child, portable
from bench.moved import EVERYTHING, moved
from bench.results import Row
from bench.servers import RedisServer
from bench.workload import Workload

LIMIT_BYTES = 1 << 30


def _cases(size: int, quick: bool) -> list[Case]:
    return [
        Case("settle", size, partial(_settle, size=size)),
        Case("archive", size, partial(_archive_week if quick else _archive_day, size=size)),
    ]


def _settle(bench: Bench, *, size: int) -> Sequence[Row]:
    return [_row("worker settling and merging", size, moved(bench, size).settling_peak_bytes)]


def _archive_week(bench: Bench, *, size: int) -> Sequence[Row]:
    [found, *_] = moved(bench, size).archived(EVERYTHING)
    return [_row("worker archiving a week, everything kept", size, found.step.peak_bytes)]


def _archive_day(bench: Bench, *, size: int) -> Sequence[Row]:
    folder = bench.folder("memory")
    with RedisServer(folder / "redis") as server:
        config = stores.settings(folder, server, sampling=stores.KEEP_ALL)
        loader.load(Workload(size, end_us=bench.end_us, days=1), config)
        with Child("work").ready() as worker:
            worker.ask(json.dumps(portable(config)))
            told = worker.ask("archive")
    if told["events"] != size:
        raise ValueError(f"{told['events']:,} events were archived, there are {size:,}")
    return [_row("worker archiving one day, everything kept", size, told["peak_bytes"])]


def _row(what: str, size: int, peak: int) -> Row:
    return Row(
        what=what,
        events=size,
        value=f"{peak / (1 << 20):,.0f} MiB",
        target="≤ 1 GiB at 10 M events",
        met=peak <= LIMIT_BYTES,
        figures={"peak_bytes": peak},
    )


TABLE = Table(
    name="memory",
    title="Memory of the worker",
    about="VmHWM of a process that does nothing else: the most it had resident at any moment, DuckDB, Arrow and Python included.",
    sizes=(10_000_000,),
    cases=_cases,
)
