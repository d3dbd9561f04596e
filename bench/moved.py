"""Events that go all the way from Redis to the archive, a step at a time, in a process that does nothing else.

What every step took, and beside it what DuckDB alone takes for the least one could do with the same rows. Several tables are
about parts of it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.config import Settings
from thermocline.event import COLUMNS
from thermocline.store import connect
from thermocline.tiers.block import Block
from thermocline.tiers.duck import Connection, quoted
from thermocline.tiers.duck import connect as open_duck
from thermocline.tiers.ledger import Segment
from thermocline.tiers.opening import Tiers

from . import filling, stores
from .case import Bench
from .child import Child, portable
from .measure import Clock
from .servers import RedisServer
from .workload import Workload

ROUNDS_MIN = 5
QUICK_COMPARED = (0, 3)
"""Rounds of the quick run that DuckDB alone does too."""
ALONE_MAX = 1_000_000
"""With more events DuckDB alone is not measured, and what is due for a merge is merged at once instead of when all is settled."""
IDLE = 4
"""Processes that are begun while there is nothing to measure yet: one settles, one merges, two archive in the quick run."""
ALONE_MEMORY_BYTES = 4 << 30
"""Of DuckDB alone, which sorts everything at once; the worker has warm.memory_bytes_max."""
ORDER = "conversation_id, timestamp, seq"
EVERYTHING, DEFAULT = "everything kept", "the default policy"
POLICIES: dict[str, dict[str, Any]] = {EVERYTHING: stores.KEEP_ALL, DEFAULT: {"rules": []}}


class Step(stores.Spent, frozen=True, kw_only=True):
    """What a process that works says of a step."""

    segments: int
    """In the store afterwards."""
    files: int
    """In the archive afterwards."""
    peak_bytes: int
    """The most memory the process had so far."""


class Alone(msgspec.Struct, frozen=True, kw_only=True):
    """What DuckDB alone took."""

    wall_s: float
    cpu_s: float


AloneWith = Callable[[Tiers, Sequence[Segment], Path], Alone]


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A step, and DuckDB alone before it, after it, or both; neither when there are too many events."""

    step: Step
    alone: tuple[Alone, ...]

    @property
    def alone_s(self) -> float:
        if not self.alone:
            raise ValueError(
                f"DuckDB alone is measured up to {ALONE_MAX:,} events; what more of them take is in the table of growth"
            )
        return sum(one.wall_s for one in self.alone) / len(self.alone)

    @property
    def alone_cpu_s(self) -> float:
        return sum(one.cpu_s for one in self.alone) / len(self.alone)


class Moved:
    """A store through which `size` events of a week go."""

    def __init__(self, bench: Bench, size: int) -> None:
        self.size = size
        self._bench = bench
        self._folder = bench.folder("moved")
        self.server = RedisServer(self._folder / "redis")
        self.config = worker_settings(self._folder, self.server)
        self.settled: list[Beside] = []
        self.merged_meanwhile: list[Step] = []
        self._archived: dict[str, list[Beside]] = {}
        self._known_alone: dict[AloneWith, list[Alone]] = {}
        self._idle = [Child("work") for _ in range(IDLE)]
        with ExitStack() as opened:
            rows_max = min(self.config.warm.settle_batch_events, -(-size // ROUNDS_MIN))
            for number, table in enumerate(Workload(size, end_us=bench.end_us).arrivals(rows_max=rows_max)):
                compared = size <= ALONE_MAX and (number in QUICK_COMPARED or not bench.quick)
                lines = self._append(table, compared=compared)
                if number == 0:
                    for idle in self._idle:
                        idle.ready()
                    worker = opened.enter_context(self._worker(self.config))
                self._round(worker, table.num_rows, lines)

    def _append(self, table: pa.Table, *, compared: bool) -> pa.Table | None:
        """Append the rows; Redis has synced them, so that settling need not wait for its disk. Their lines, if to be compared."""
        blocks: list[Block] | None = [] if compared else None
        self.server.client.config_set("appendfsync", "everysec")
        filling.append(self.config, [table], appended=blocks)
        self.server.client.config_set("appendfsync", "always")
        self.server.client.set("synced", len(self.settled))  # with a write it syncs all before it
        return None if blocks is None else _lines(blocks)

    def _round(self, worker: Child, events: int, lines: pa.Table | None) -> None:
        """Settle what was appended; DuckDB alone with the same lines before or after, in turns."""
        alone_first = len(self.settled) % 2 == 0
        alone = [_parse_alone(lines, self._folder, self.config)] if lines is not None and alone_first else []
        step = told(worker, "settle")
        if step.events != events:
            raise ValueError(f"{step.events:,} events settled, {events:,} waited")
        if lines is not None and not alone_first:
            alone = [_parse_alone(lines, self._folder, self.config)]
        self.settled.append(Beside(step=step, alone=tuple(alone)))
        if self.size > ALONE_MAX:
            self.merged_meanwhile.append(told(worker, "merge what is due"))

    @property
    def settling_peak_bytes(self) -> int:
        steps = (self.settled[-1].step, *self.merged_meanwhile, self.merged.step)
        return max(one.peak_bytes for one in steps)

    @cached_property
    def merged(self) -> Beside:
        """Every day merged and sealed."""
        warm = self.config.warm.model_copy(update={"seal_after_s": 0.0})
        with self._worker(self.config.model_copy(update={"warm": warm})) as worker:
            return self._beside(_merge_alone, lambda: told(worker, "merge everything"))

    def archived(self, policy: str, rounds: int = 1) -> list[Beside]:
        """Everything archived by a policy of POLICIES, at least so many times."""
        found = self._archived.setdefault(policy, [])
        while len(found) < rounds:
            found.append(self._archive(POLICIES[policy]))
        return found

    def _archive(self, sampling: dict[str, Any]) -> Beside:
        """From a copy of the store, by a process that has done nothing else."""
        self.merged  # noqa: B018  # it is made
        folder = self._bench.folder("archived")
        config = worker_settings(folder, self.server, sampling=sampling)
        shutil.copytree(self.config.namespace_dir, config.namespace_dir)
        with self._worker(config) as worker:
            found = self._beside(_archive_alone, lambda: told(worker, "archive"))
        if found.step.events != self.size:
            raise ValueError(f"{found.step.events:,} events were archived, there are {self.size:,}")
        shutil.rmtree(folder)
        return found

    def _beside(self, alone: AloneWith, work: Callable[[], Step]) -> Beside:
        """A step, and DuckDB alone before and after it; in the quick run, before the first that is compared with it."""
        found = list(self._known_alone.get(alone, []))
        with connect(self.config) as store:
            if self.size <= ALONE_MAX and not found:
                found.append(self._alone(alone, store.tiers))
            step = work()
            if self.size <= ALONE_MAX and not self._bench.quick:
                found.append(self._alone(alone, store.tiers))
        if self._bench.quick:
            self._known_alone[alone] = found
        return Beside(step=step, alone=tuple(found))

    def _alone(self, alone: AloneWith, tiers: Tiers) -> Alone:
        """What DuckDB alone takes for the rows of all segments; the quick run goes by those of two in five."""
        segments = tiers.ledger.view().segments
        part = segments[: -(-len(segments) * 2 // 5)] if self._bench.quick else segments
        more = sum(one.rows for one in segments) / sum(one.rows for one in part)
        took = alone(tiers, part, self._folder)
        return Alone(wall_s=took.wall_s * more, cpu_s=took.cpu_s * more)

    def _worker(self, config: Settings) -> Child:
        """A process that works for these settings and has done nothing else."""
        worker = self._idle.pop() if self._idle else Child("work").ready()
        worker.ask(json.dumps(portable(config)))
        return worker

    def close(self) -> None:
        for worker in self._idle:
            worker.close()
        self.server.close()


def told(worker: Child, order: str) -> Step:
    """What a worker did when it was told to."""
    return msgspec.convert(worker.ask(order), Step)


def moved(bench: Bench, size: int) -> Moved:
    """One for all tables of this size."""
    made: Moved = bench.shared(("", "moved", size), lambda: Moved(bench, size))
    return made


def worker_settings(folder: Path, server: RedisServer, **overrides: Any) -> Settings:
    """Settings of a worker that tidies up soon."""
    chosen = {
        "warm": {**stores.WARM_ONLY, "purge_grace_s": 1},
        "hot": {"cache_window_s": 5},
        "sampling": stores.KEEP_ALL,
        **overrides,
    }
    return stores.settings(folder, server, **chosen)


def _lines(blocks: Sequence[Block]) -> pa.Table:
    """(conversation_id, line) of every event."""
    split = pc.split_pattern(pa.array([block.payload for block in blocks], pa.string()), "\n")
    names = pa.array([block.conversation_id for block in blocks])
    return pa.table({"conversation_id": names.take(pc.list_parent_indices(split)), "line": pc.list_flatten(split)})


def _parse_alone(lines: pa.Table, folder: Path, settings: Settings) -> Alone:
    """Parse, sort and store the lines."""
    clock = Clock()
    spec = "{" + ", ".join(f'"{column.name}": "{column.line_type}"' for column in COLUMNS if column.in_line) + "}"
    con = open_duck(memory_bytes=settings.warm.memory_bytes_max, threads=settings.warm.threads)
    target = folder / f"alone-{time.monotonic_ns()}.duckdb"
    con.register("lines", lines)
    con.execute(f"ATTACH '{target}' AS alone (STORAGE_VERSION 'v1.5.0')")
    select = f"SELECT conversation_id, unnest(from_json(line, '{spec}')) FROM lines"
    con.execute(f"CREATE TABLE alone.events AS FROM ({select}) ORDER BY conversation_id, timestamp")
    con.execute("CHECKPOINT alone")
    con.close()
    target.unlink()
    return Alone(wall_s=clock.wall_s, cpu_s=clock.cpu_s)


def _merge_alone(tiers: Tiers, segments: Sequence[Segment], folder: Path) -> Alone:
    """Write the rows of the segments, sorted, into one new file."""
    con, rows = _opened(tiers, segments, folder)
    clock, target = Clock(), folder / "alone.duckdb"
    con.execute(f"ATTACH '{target}' AS alone (STORAGE_VERSION 'v1.5.0')")
    con.execute(f"CREATE TABLE alone.events AS FROM ({rows}) ORDER BY {ORDER}")
    con.execute("CHECKPOINT alone")
    found = Alone(wall_s=clock.wall_s, cpu_s=clock.cpu_s)
    con.close()
    target.unlink()
    return found


def _archive_alone(tiers: Tiers, segments: Sequence[Segment], folder: Path) -> Alone:
    """Write the rows of the segments, sorted, as one Parquet file."""
    con, rows = _opened(tiers, segments, folder)
    clock, target = Clock(), folder / "alone.parquet"
    con.execute(
        f"COPY (SELECT * FROM ({rows}) ORDER BY {ORDER})"
        f" TO {quoted(str(target))} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)"
    )
    found = Alone(wall_s=clock.wall_s, cpu_s=clock.cpu_s)
    con.close()
    target.unlink()
    return found


def _opened(tiers: Tiers, segments: Sequence[Segment], folder: Path) -> tuple[Connection, str]:
    """A DuckDB with the segments attached, and SELECT of all their rows."""
    con = open_duck(memory_bytes=ALONE_MEMORY_BYTES, threads=tiers.settings.warm.threads, temp_dir=str(folder / "spill"))
    for number, segment in enumerate(segments):
        con.execute(f"ATTACH {quoted(tiers.warm.path(segment.segment_id))} AS s{number} (READ_ONLY)")
    return con, " UNION ALL ".join(f"SELECT * FROM s{number}.events" for number in range(len(segments)))
