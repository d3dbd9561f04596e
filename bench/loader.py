"""A store with many events in warm, made without Redis: its segments are written by the product's own segment writer, day by day
and sorted, as merging leaves them, and listed in its ledger one by one. `load` checks the count and runs `verify`.

Beside the merged days it has the largest backlog of unmerged segments that the design allows: those that wait for company to
merge and those that settle while the longest merge runs, each as large as may be without rollups.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import uuid_utils

from thermocline.config import Settings
from thermocline.event import COLUMNS
from thermocline.store import connect
from thermocline.tiers import segment_file
from thermocline.tiers.block import Position, shard_of
from thermocline.tiers.duck import Connection, registered
from thermocline.tiers.duck import connect as open_duck
from thermocline.tiers.ledger import Segment, ShardRange, ShardState
from thermocline.tiers.ledger_sql import SqlLedger
from thermocline.tiers.merge_split import day_text

from . import shape
from .workload import DAY_US, Ints, Workload, as_strings

WRITERS = 2
"""Processes that write segments, each with one thread."""
PROCESSES_FROM = 200_000
"""Fewer events are written before a process has begun."""
PIECE_ROWS = 200_000
"""Rows sorted and inserted at once."""
MERGED_LEVEL = 3
BACKLOG_SEGMENTS = 24
"""Ten wait until there is an eleventh (warm.fan_in), and one settles each second while a merge writes up to 8 M rows."""
BYTES_PER_EVENT = 680
"""What the shards' byte counters are told; only sums are compared."""


def backlog(events: int, config: Settings) -> tuple[int, int]:
    """(segments, rows of each) that wait for a merge; fewer rows when that would be more than a tenth of all."""
    room = max(shape.CONVERSATION_EVENTS)  # by so much a day may pass what was asked for
    return BACKLOG_SEGMENTS, min(config.warm.rollup_rows_min - 1 - room, events // (10 * BACKLOG_SEGMENTS))


def workload(events: int, config: Settings, *, end_us: int) -> Workload:
    """The events of `load`."""
    segments, rows = backlog(events, config)
    return Workload(events, end_us=end_us, today_events=segments * rows)


def load(load_: Workload, config: Settings) -> None:
    """Make the store of `config` hold the events of `load_`. ValueError when it does not afterwards."""
    (config.namespace_dir / "segments").mkdir(parents=True, exist_ok=True)
    ledger = SqlLedger(f"sqlite:///{config.namespace_dir.resolve()}/ledger.db", folder=config.namespace_dir)
    try:
        ledger.create(incarnation=uuid.uuid4().hex, shards=config.hot.shards, buckets=config.hot.buckets, now_us=load_.start_us)
        listed = _Listed(load_, config, ledger)
        with _writers(load_, config) as each:
            for segment in each(_write_part, list(listed.parts())):
                listed.add(segment)
        if load_.days > load_.full_days:
            for segment in _backlog(load_, config, listed):
                listed.add(segment)
    finally:
        ledger.close()
    _check(load_, config)


def _check(load_: Workload, config: Settings) -> None:
    with connect(config) as store:
        [(count,)] = store.sql("SELECT count(*) FROM events").fetchall()
        [(rolled,)] = store.sql("SELECT sum(event_count) FROM hourly_stats").fetchall()
        found = store.verify()
    if (count, rolled) != (load_.events, load_.events) or not found.ok:
        raise ValueError(f"{load_.events:,} events were loaded, {count:,} and {rolled:,} are there; verify: {found.problems}")


class _Part(NamedTuple):
    """The conversations `first` to `last` of a closed day, which become one segment."""

    day: int
    first: int
    last: int
    number: int
    parts: int
    ranges: tuple[ShardRange, ...]


class _Listed:
    """What the ledger is to say of the segments, and how far their ranges have come."""

    def __init__(self, load_: Workload, config: Settings, ledger: SqlLedger) -> None:
        self._load = load_
        self._config = config
        self._ledger = ledger
        self._epoch = ledger.take_epoch("bench", load_.start_us)
        self._states = {state.shard: state for state in ledger.view().shards}
        self._last = dict(self._states)
        shards = config.hot.shards
        self._shard_of = np.array([shard_of(name, shards) for name in load_.names(np.arange(load_.conversations))], np.int16)

    def parts(self) -> Iterator[_Part]:
        """Every closed day as final segments, in conversation ranges of at most segment_rows_max rows."""
        for day in range(self._load.full_days):
            conversations, _, counts = self._load.of_day(day)
            edges = list(_ranges(counts, self._config.warm.segment_rows_max * 9 // 10))
            for number, (first, last) in enumerate(edges, start=1):
                ranges = self._next(self._shard_of[conversations[first:last]], counts[first:last])
                yield _Part(day, first, last, number, len(edges), ranges)

    def of_names(self, names: list[str], counts: Ints) -> tuple[ShardRange, ...]:
        """The ranges of a segment with so many events of these conversations."""
        return self._next(np.array([shard_of(name, self._config.hot.shards) for name in names]), counts)

    def _next(self, shards: Ints, counts: Ints) -> tuple[ShardRange, ...]:
        per_shard = np.bincount(shards, weights=counts, minlength=self._config.hot.shards).astype(np.int64)
        return tuple(self._range(shard, events) for shard, events in enumerate(per_shard.tolist()) if events)

    def _range(self, shard: int, events: int) -> ShardRange:
        state: ShardState = self._last[shard]
        one = ShardRange(
            shard=shard,
            after=state.position,
            upto=Position(self._load.start_us // 1000 + state.events + events, 0),
            events=events,
            events_upto=state.events + events,
            bytes_upto=state.bytes + events * BYTES_PER_EVENT,
            rejected_upto=0,
        )
        self._last[shard] = _moved(state, one)
        return one

    def add(self, segment: Segment) -> None:
        """List a segment whose ranges follow those of the one before."""
        moved = [_moved(self._states[one.shard], one) for one in segment.ranges]
        self._states.update({state.shard: state for state in moved})
        self._ledger.settled(self._epoch, segment, moved, now_us=segment.created_us)


def _moved(state: ShardState, one: ShardRange) -> ShardState:
    return msgspec.structs.replace(state, position=one.upto, events=one.events_upto, bytes=one.bytes_upto)


@contextmanager
def _writers(load_: Workload, config: Settings) -> Iterator[Callable[..., Iterable[Segment]]]:
    """A `map` over WRITERS processes, or over none when there is little to write."""
    if load_.events < PROCESSES_FROM:
        _begin_writing(load_, config)
        try:
            yield map
        finally:
            _writing.pop()[2].close()
        return
    with ProcessPoolExecutor(WRITERS, get_context("spawn"), initializer=_begin_writing, initargs=(load_, config)) as pool:
        yield pool.map


_writing: list[tuple[Workload, Settings, Connection]] = []
"""Of a process that writes segments."""


def _begin_writing(load_: Workload, config: Settings) -> None:
    temp_dir = config.namespace_dir / f"spill-loading-{os.getpid()}"
    con = open_duck(memory_bytes=4 << 30, threads=1, temp_dir=str(temp_dir))
    con.execute("SET enable_progress_bar = false")  # a process that was spawned counts as interactive
    _writing.append((load_, config, con))


def _write_part(part: _Part) -> Segment:
    [(load_, config, con)] = _writing
    conversations, firsts, counts = (column[part.first : part.last] for column in load_.of_day(part.day))
    pieces = load_.grouped(part.day, conversations, firsts, counts, rows_max=PIECE_ROWS)
    day = day_text((load_.start_us + part.day * DAY_US) // DAY_US)
    return _written(con, load_, config, pieces, part.ranges, level=MERGED_LEVEL, day=day, part=(part.number, part.parts))


def _backlog(load_: Workload, config: Settings, listed: _Listed) -> Iterator[Segment]:
    """The last day as unmerged segments, each of events that came in one after the other."""
    rows = pa.concat_tables(as_strings(table) for table in load_.day(load_.full_days)).sort_by("timestamp")
    segments, size = backlog(load_.events, config)
    with closing(open_duck(memory_bytes=4 << 30, threads=2, temp_dir=str(config.namespace_dir / "spill-loading"))) as con:
        for start in range(0, rows.num_rows, max(size, 1)):
            piece = rows.slice(start, size if start // max(size, 1) < segments - 1 else rows.num_rows)
            names, counts = np.unique(piece["conversation_id"].to_numpy(zero_copy_only=False), return_counts=True)
            ranges = listed.of_names(names.tolist(), counts)
            yield _written(con, load_, config, [piece], ranges, level=0, day=None, part=(1, 1))
            if piece.num_rows > size:
                break


def _written(
    con: Connection,
    load_: Workload,
    config: Settings,
    pieces: Iterable[pa.Table],
    ranges: tuple[ShardRange, ...],
    *,
    level: int,
    day: str | None,
    part: tuple[int, int],
) -> Segment:
    label = segment_file.Label(
        level=level,
        day=day,
        move_id=uuid_utils.uuid7().hex,
        part=part[0],
        parts=part[1],
        inputs=(),
        created_us=load_.start_us + 8 * DAY_US,
    )
    rows = sum(one.events for one in ranges)
    with ExitStack() as stack:
        sources = [stack.enter_context(registered(con, piece)) for piece in pieces]
        segment = segment_file.write(
            con,
            config.namespace_dir / "segments",
            [f"(SELECT {_select()} FROM {source})" for source in sources],
            label,
            ranges=lambda _: ranges,
            rollup_rows_min=0 if level else config.warm.rollup_rows_min,
            block_bytes=segment_file.LARGE_BLOCK_BYTES if rows > 50_000 else segment_file.SMALL_BLOCK_BYTES,
            group_rows=segment_file.MERGED_GROUP_ROWS if level else segment_file.SETTLED_GROUP_ROWS,
            text=segment_file.PACKED_TEXT if level or rows < config.warm.settle_events else segment_file.PLAIN_TEXT,
        )
    assert segment is not None
    return segment


def _selected(name: str, sql_type: str, columns: Any) -> str:
    if name == "ingested_at":
        return "timestamp AS ingested_at"
    if name == "sample_rate":
        return "1.0::DOUBLE AS sample_rate"
    return f"{name}::{sql_type} AS {name}" if name in columns else f"NULL::{sql_type} AS {name}"


@cache
def _select() -> str:
    """The columns of a segment from a table of the workload."""
    given = set(Workload(10, end_us=8 * DAY_US).sample().column_names)
    return ", ".join(_selected(column.name, column.sql_type, given) for column in COLUMNS)


def _ranges(counts: Ints, rows_max: int) -> Iterator[tuple[int, int]]:
    """As few ranges of whole conversations as fit `rows_max`, about equal in rows."""
    ends = np.cumsum(counts)
    parts = max(1, -(-int(ends[-1]) // rows_max)) if len(ends) else 0
    cuts = np.searchsorted(ends, [ends[-1] * number // parts for number in range(1, parts)], side="left") + 1 if parts else []
    edges = [0, *[int(one) for one in cuts], len(counts)]
    yield from ((first, last) for first, last in itertools.pairwise(edges) if last > first)
