"""The warm tier as a folder of DuckDB files: warm.py is its contract, segment_file.py one file of it."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from thermocline.config import WarmSettings
from thermocline.errors import TierCorrupt

from . import segment_file
from .block import shard_of
from .checksum import COLUMN_LIST
from .dense_rows import MERGE_SHARE, alone_bytes, settle_memory_bytes
from .duck import DATA_ERRORS, Connection, DuckError, connect, duckdb_errors, fresh_name
from .ledger import Segment, ShardRange, ShardState
from .merge_split import COUNTS, THREADS_MAX, Share, counted_shares
from .rows import AGREEMENT, agree, are_plain, parse_blocks, trusted
from .segment_check import contradictions
from .segment_file import (
    FACT_COUNTS,
    LARGE_BLOCK_BYTES,
    PACKED_TEXT,
    PLAIN_TEXT,
    SETTLED_GROUP_ROWS,
    SMALL_BLOCK_BYTES,
    SUFFIX,
    Facts,
    Label,
    attached,
)
from .segment_ranges import merged_ranges, require_conserved, settled_ranges
from .segment_sum import SUM_SUFFIX, sum_path
from .side_by_side import side_by_side
from .steps import Reach, unheard
from .user_rollups import Definition
from .warm import Settled, Warm

_SEQS_BATCH_ROWS = 65_536
_instances = itertools.count(1)


class DuckWarm(Warm):
    """Segments of one namespace. Thread-safe: tasks side by side share one DuckDB and its memory limit."""

    def __init__(self, folder: Path, settings: WarmSettings, *, shards: int, rollups: Sequence[Definition] = ()) -> None:
        """folder: <namespace>/segments; shards: of the namespace, to count a segment's events per shard; rollups: of the user."""
        self._folder = folder.absolute()
        self._settings, self._rollups = settings, rollups
        self._shards = shards
        self._at_once = min(THREADS_MAX, settings.threads)
        self._lock = threading.Lock()
        self._instance: Connection | None = None

    def close(self) -> None:
        """Free memory and spill space. The next call opens them anew."""
        with self._lock:
            instance, self._instance = self._instance, None
        if instance is not None:
            instance.close()

    def path(self, segment_id: str) -> str:
        return str(self._path(segment_id))

    def write_settled(
        self, blocks: pa.Table, before: Sequence[ShardState], *, move_id: str, created_us: int, reach: Reach = unheard
    ) -> Settled:
        """See Warm. What is rejected comes back in log order.

        Blocks without fault or skipped lines are parsed, sorted and written in one go; only when what was written is not
        what their headers say, or one of them makes DuckDB raise, are they parsed again with care.
        """
        if blocks.num_rows == 0:
            return Settled(segment=None, rejected=())
        label = Label(level=0, day=None, move_id=move_id, part=1, parts=1, inputs=(), created_us=created_us)
        with self._task(f"settling into {self._folder}", writing=True) as con:
            if are_plain(blocks):
                ranges = settled_ranges(blocks, before, kept=None, rejected=())
                with suppress(*DATA_ERRORS), trusted(con, blocks) as rows:
                    segment = self._write_settled(con, f"({rows})", label, ranges, blocks, check_sums=True, reach=reach)
                    if segment is not None:
                        return Settled(segment=segment, rejected=())
            parsed = fresh_name("settling")
            rejected = parse_blocks(con, blocks, parsed)
            kept = dict(con.execute(f"SELECT shard, count(*) FROM {parsed} GROUP BY shard").fetchall())
            ranges = settled_ranges(blocks, before, kept=kept, rejected=rejected)
            segment = self._write_settled(con, parsed, label, ranges, blocks, check_sums=False, reach=reach) if kept else None
            return Settled(segment=segment, rejected=tuple(rejected))

    def _write_settled(
        self,
        con: Connection,
        rows: str,
        label: Label,
        ranges: tuple[ShardRange, ...],
        blocks: pa.Table,
        *,
        check_sums: bool,
        reach: Reach,
    ) -> Segment | None:
        """The segment of `rows`; None when their sums are to be checked and are not those of `blocks`."""
        events, size = pc.sum(blocks["events"]).as_py(), pc.sum(pc.binary_length(blocks["payload"])).as_py()
        in_a_hurry = events >= self._settings.settle_events or size >= self._settings.settle_bytes
        return segment_file.write(
            con,
            self._folder,
            [rows],
            label,
            ranges=lambda _: ranges,
            rollup_rows_min=self._settings.rollup_rows_min,
            block_bytes=self._block_bytes(size if in_a_hurry else size * 2 // 5),
            group_rows=SETTLED_GROUP_ROWS,
            text=PLAIN_TEXT if in_a_hurry else PACKED_TEXT,
            at_once=self._at_once,
            user_rollups=self._rollups,
            beside=AGREEMENT if check_sums else (),
            accept=lambda found: not check_sums or agree(blocks, found),
            reach=reach,
        )

    def write_merged(
        self, inputs: Sequence[Segment], *, level: int, move_id: str, created_us: int, reach: Reach = unheard
    ) -> list[Segment]:
        """See Warm. All or nothing: on an error the outputs already written are removed. What is
        sorted at once is no more than one settle; what does not fit in memory all the same spills beside the segments."""
        outputs = self._rewritten(inputs, "", level=level, move_id=move_id, created_us=created_us, reach=reach)
        try:
            require_conserved(inputs, outputs)
        except TierCorrupt:
            self._remove(outputs)
            raise
        return outputs

    def write_rest(
        self, inputs: Sequence[Segment], *, from_us: int, level: int, move_id: str, created_us: int, reach: Reach = unheard
    ) -> list[Segment]:
        """See Warm. All or nothing, like a merge."""
        where = f" WHERE timestamp >= make_timestamptz({from_us})"
        young = [one for one in inputs if one.timestamp_max_us >= from_us]
        if not young:
            return []
        return self._rewritten(young, where, level=level, move_id=move_id, created_us=created_us, reach=reach)

    def _rewritten(
        self, inputs: Sequence[Segment], where: str, *, level: int, move_id: str, created_us: int, reach: Reach
    ) -> list[Segment]:
        """The rows of `inputs` that `where` leaves, as new segments."""
        task = f"merging into {self._folder}"
        with self.reading(inputs, task=task) as (con, aliases):
            found = _shares(con, _rows(aliases, where), self._settings)
        outputs: list[Segment] = []
        try:
            with self._single_threaded(task) as con, self._attached(con, inputs) as aliases:
                rows = _rows(aliases, where)

                def write(part: int, share: Share, facts: Facts | None) -> None:
                    label = Label(
                        level=level,
                        day=share.day,
                        move_id=move_id,
                        part=part,
                        parts=len(found),
                        inputs=tuple(one.segment_id for one in inputs),
                        created_us=created_us,
                    )
                    with con.cursor() as own:
                        at_once = self._at_once if len(found) == 1 else 1
                        outputs.append(self._write_share(own, rows, share, facts, label, inputs, at_once=at_once, reach=reach))

                tasks = [partial(write, part, share, facts) for part, (share, facts) in enumerate(found, start=1)]
                side_by_side(tasks, at_once=self._at_once)
        except BaseException:
            self._remove(outputs)
            raise
        return sorted(outputs, key=lambda one: one.part)

    def _remove(self, outputs: Sequence[Segment]) -> None:
        for output in outputs:
            with suppress(OSError):
                self._path(output.segment_id).unlink()
                sum_path(self._path(output.segment_id)).unlink(missing_ok=True)

    @contextmanager
    def reading(
        self, segments: Sequence[Segment], *, task: str, memory_share: float | None = None
    ) -> Iterator[tuple[Connection, list[str]]]:
        """A connection with room to spill, and the names under which it has the segments attached, in their order.

        memory_share  for what needs memory of its own beside DuckDB: it gets a DuckDB of its own, with that part of
                      memory_bytes_max, and the other one is let go first

        Errors inside come out as TierUnavailable or TierCorrupt that name `task`.
        """
        opened = self._task(task, writing=True) if memory_share is None else self._alone(task, memory_share=memory_share)
        with opened as con, self._attached(con, segments) as aliases:
            yield con, aliases

    def _write_share(
        self,
        con: Connection,
        rows: str,
        share: Share,
        facts: Facts | None,
        label: Label,
        inputs: Sequence[Segment],
        *,
        at_once: int,
        reach: Reach,
    ) -> Segment:
        expected = sum(one.file_bytes for one in inputs) * share.rows // max(1, sum(one.rows for one in inputs))
        segment = segment_file.write(
            con,
            self._folder,
            [f"(SELECT * FROM {rows} WHERE {step})" for step in share.steps],
            label,
            ranges=lambda alias: merged_ranges(inputs, self._events_per_shard(con, alias)),
            rollup_rows_min=0,
            block_bytes=self._block_bytes(expected),
            group_rows=share.group_rows,
            facts=facts,
            at_once=at_once,
            user_rollups=self._rollups,
            reach=reach,
        )
        assert segment is not None  # nothing was to be accepted
        return segment

    def _events_per_shard(self, con: Connection, alias: str) -> dict[int, int]:
        """What the rollups of an attached segment say."""
        counts: dict[int, int] = {}
        for conversation_id, events in con.execute(f"SELECT conversation_id, events FROM {alias}.rollup_conversation").fetchall():
            shard = shard_of(conversation_id, self._shards)
            counts[shard] = counts.get(shard, 0) + events
        return counts

    def read_info(self, segment_id: str) -> Segment:
        path = self._path(segment_id)
        with self._reading(path) as (con, alias):
            return segment_file.read_info(con, alias, path=path)

    def check(self, segment: Segment, *, deep: bool) -> list[str]:
        path = self._path(segment.segment_id)
        if not path.exists():
            return [f"segment {path}: the file is missing"]
        try:
            with self._reading(path) as (con, alias):
                stored = segment_file.read_info(con, alias, path=path)
                problems = [
                    f"segment {path}: {name} is {getattr(stored, name)!r}, the ledger says {getattr(segment, name)!r}"
                    for name in Segment.__struct_fields__
                    if getattr(stored, name) != getattr(segment, name)
                ]
                return problems + [
                    f"segment {path}: {one}" for one in contradictions(con, alias, stored, self._rollups, deep=deep)
                ]
        except TierCorrupt as exc:
            return [str(exc)]

    def stored(self) -> list[str]:
        return sorted(path.name.removesuffix(SUFFIX) for path in self._folder.glob(f"*{SUFFIX}"))

    def last_seqs(self, segments: Sequence[Segment]) -> Iterator[pa.RecordBatch]:
        if not segments:
            return
        with self._task(f"reading {self._folder}") as con, self._attached(con, segments) as aliases:
            parts = [
                f"SELECT conversation_id, seq_max AS seq FROM {alias}.rollup_conversation"
                if segment.has_rollups
                else f"SELECT conversation_id, max(seq) AS seq FROM {alias}.events GROUP BY conversation_id"
                for segment, alias in zip(segments, aliases, strict=True)
            ]
            union = " UNION ALL ".join(parts)
            found = con.sql(f"SELECT conversation_id, max(seq) AS seq FROM ({union}) GROUP BY conversation_id")
            yield from found.to_arrow_reader(_SEQS_BATCH_ROWS)

    def bytes_used(self) -> int:
        total = 0
        for path in self._folder.glob("*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.suffix != SUM_SUFFIX else 0
        return total

    def _path(self, segment_id: str) -> Path:
        return self._folder / f"{segment_id}{SUFFIX}"

    def _block_bytes(self, expected_bytes: int) -> int:
        return SMALL_BLOCK_BYTES if expected_bytes < self._settings.small_block_bytes_max else LARGE_BLOCK_BYTES

    @contextmanager
    def _task(self, subject: str, *, writing: bool = False) -> Iterator[Connection]:
        """A connection for one task. Errors of DuckDB and the disk come out as ours; DuckDB starts anew after one."""
        with duckdb_errors(subject, reading=not writing):
            con = self._cursor(writing=writing)
            try:
                yield con
            except DuckError:
                self._discard()
                raise
            finally:
                con.close()

    def _single_threaded(self, subject: str) -> AbstractContextManager[Connection]:
        """A DuckDB that runs every statement in the thread that asks for it, for tasks that go on side by side.

        With two threads to a statement DuckDB writes the sorted rows of a merge with one of them all the same, and takes half
        as much work again: it merges what it has compressed into row groups anew.
        """
        return self._alone(subject, memory_share=MERGE_SHARE, threads=1)

    @contextmanager
    def _alone(self, subject: str, *, memory_share: float, threads: int | None = None) -> Iterator[Connection]:
        """A DuckDB of its own. The other one is let go first, as it holds 200 MiB of what it has read."""
        self._discard()
        memory_bytes = alone_bytes(self._settings, memory_share)
        with duckdb_errors(subject):
            con = self._connect(threads=threads or self._settings.threads, memory_bytes=memory_bytes)
            try:
                yield con
            finally:
                con.close()

    def _cursor(self, *, writing: bool) -> Connection:
        with self._lock:
            if self._instance is None:
                if writing:
                    self._remove_old_spills()
                self._instance = self._connect(threads=self._settings.threads, memory_bytes=settle_memory_bytes(self._settings))
            return self._instance.cursor()

    def _connect(self, *, threads: int, memory_bytes: int) -> Connection:
        spill = self._folder.parent / f"spill-{os.getpid()}-{next(_instances)}"
        con = connect(memory_bytes=memory_bytes, threads=threads, temp_dir=str(spill))
        con.execute("SET GLOBAL write_buffer_row_group_count = 1")  # a settle has few: waiting for five leaves them to one thread
        return con

    def _discard(self) -> None:
        """Let tasks to come use a new instance: a failed write can leave DuckDB unusable. Tasks under way keep theirs."""
        with self._lock:
            self._instance = None

    def _remove_old_spills(self) -> None:
        """Remove what a worker that was killed spilled. (DuckDB removes its own when it closes.)"""
        for path in self._folder.parent.glob("spill-*"):
            pid = path.name.split("-")[1]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _reading(self, path: Path) -> Iterator[tuple[Connection, str]]:
        """One segment attached for reading. TierCorrupt if it cannot be opened, TierUnavailable if it is not there."""
        with self._task(f"segment {path}") as con:
            path.stat()
            with attached(con, path) as alias:
                yield con, alias

    @contextmanager
    def _attached(self, con: Connection, segments: Sequence[Segment]) -> Iterator[list[str]]:
        """The aliases of many segments attached for reading."""
        with ExitStack() as stack:
            aliases = []
            for segment in segments:
                path = self._path(segment.segment_id)
                with duckdb_errors(f"segment {path}", reading=True):
                    aliases.append(stack.enter_context(attached(con, path)))
            yield aliases


def _rows(aliases: Sequence[str], where: str) -> str:
    """The events of attached segments as one relation."""
    return "(" + " UNION ALL ".join(f"SELECT {COLUMN_LIST} FROM {alias}.events{where}" for alias in aliases) + ")"


def _shares(con: Connection, rows: str, settings: WarmSettings) -> list[tuple[Share, Facts | None]]:
    """What a merge of `rows` writes. Facts of the inputs, where they are known: outputs are checked against them when they are
    read back."""
    counts = fresh_name("counts")
    con.execute(f"CREATE TEMP TABLE {counts} AS SELECT {COUNTS}, {FACT_COUNTS} FROM {rows} GROUP BY ALL")
    found = [
        (share, None if share.counts is None else segment_file.counted(con, share.counts))
        for share in counted_shares(con, rows, counts, settings)
    ]
    con.execute(f"DROP TABLE {counts}")
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return not isinstance(exc, ProcessLookupError)
    return True
