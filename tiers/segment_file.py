"""One segment as a DuckDB file: its tables, its checksums, its facts about itself, and how it is written for good.

Steps of `write` and what a crash after each leaves: `<id>.tmp` filled (an orphan) · read back and compared (the same) ·
its sum written to `<id>.sum` (an orphan too) · fsynced and renamed to `<id>.duckdb`, folder fsynced (a segment the ledger
does not list yet).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import uuid_utils

from thermocline.errors import TierCorrupt
from thermocline.event import COLUMNS, FORMAT

from . import rollups
from .block import Position
from .checksum import COLUMN_LIST, HASH_KIND, ROW_HASH, SEGMENT_CHECKSUM
from .duck import Connection, DuckError, fresh_name, quoted, registered
from .ledger import Segment, ShardRange
from .segment_sum import sum_of, sum_path, write_sum
from .side_by_side import side_by_side
from .steps import Reach, named, unheard
from .user_rollups import TABLE, Definition, create

SUFFIX: Final = ".duckdb"
TMP_SUFFIX: Final = ".tmp"
EVENT_TYPES_MAX: Final = 64
"""More distinct event types than this are not listed."""
SMALL_BLOCK_BYTES: Final = 16_384
LARGE_BLOCK_BYTES: Final = 262_144
SETTLED_GROUP_ROWS: Final = 20_480
MERGED_GROUP_ROWS: Final = 40_960
"""Rows of a row group at most. DuckDB compresses and scans one with one thread. Of what is inserted at once whole groups are
compressed and written; what is left of one stays in memory as it is, and is compressed when the file is closed."""
VECTOR_ROWS: Final = 2048
"""A row group is a multiple of it."""
_SORTED: Final = "conversation_id, timestamp, seq"
PLAIN_TEXT: Final = "uncompressed"
PACKED_TEXT: Final = "zstd"
"""How `content` and `metadata` are stored. A large settle is written in a hurry, read by every query, and soon merged: texts as
they are take 40 % less CPU to write and half as much to read a conversation from. What stays, a small settle of a quiet store
too, takes a third of the room."""

_RANGES: Final = pa.list_(
    pa.struct(
        [
            pa.field("shard", pa.int32()),
            pa.field("after", pa.string()),
            pa.field("upto", pa.string()),
            pa.field("events", pa.int64()),
            pa.field("events_upto", pa.int64()),
            pa.field("bytes_upto", pa.int64()),
            pa.field("rejected_upto", pa.int64()),
        ]
    )
)
_INFO_SCHEMA: Final = pa.schema(
    [
        ("format", pa.string()),
        ("segment_id", pa.string()),
        ("level", pa.int32()),
        ("day", pa.string()),
        ("move_id", pa.string()),
        ("part", pa.int32()),
        ("parts", pa.int32()),
        ("inputs", pa.list_(pa.string())),
        ("rows", pa.int64()),
        ("content_bytes", pa.int64()),
        ("timestamp_min_us", pa.int64()),
        ("timestamp_max_us", pa.int64()),
        ("conversation_min", pa.string()),
        ("conversation_max", pa.string()),
        ("event_types", pa.list_(pa.string())),
        ("has_rollups", pa.bool_()),
        ("checksum", pa.string()),
        ("created_us", pa.int64()),
        ("ranges", _RANGES),
    ]
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a set of rows says of itself."""

    rows: int
    content_bytes: int
    timestamp_min_us: int
    timestamp_max_us: int
    conversation_min: str
    conversation_max: str
    checksum: str


_FACTS: Final = (
    "count(*)",
    "sum(strlen(content))::BIGINT",
    "epoch_us(min(timestamp))",
    "epoch_us(max(timestamp))",
    "min(conversation_id)",
    "max(conversation_id)",
    SEGMENT_CHECKSUM,
)
_FACTS_OF_COUNTS: Final = (
    "sum(rows)::BIGINT",
    "sum(content_bytes)::BIGINT",
    "min(first_us)",
    "max(last_us)",
    "min(conversation_id)",
    "max(conversation_id)",
    f"concat({HASH_KIND}, ':', sum(hashes))",
)
"""Aggregates that give the fields of Facts: over rows, over counts of them."""
FACT_COUNTS: Final = (
    "sum(strlen(content))::BIGINT AS content_bytes, epoch_us(min(timestamp)) AS first_us, epoch_us(max(timestamp)) AS last_us,"
    f" {ROW_HASH} AS hashes"
)
"""Columns beside conversation_id and rows that `counted` needs of rows of events GROUP BY conversation_id and more."""


def measured(con: Connection, rows: str, *, beside: Sequence[str] = ()) -> tuple[Facts, list[Any]]:
    """The facts of a relation with the columns of events and at least one row, and the aggregates `beside` over it."""
    [found] = con.execute(f"SELECT {', '.join([*_FACTS, *beside])} FROM {rows}").fetchall()
    return _facts(found[: len(_FACTS)]), list(found[len(_FACTS) :])


def counted(con: Connection, counts: str) -> Facts:
    """The facts of the rows that a relation counts: conversation_id, rows and FACT_COUNTS."""
    [found] = con.execute(f"SELECT {', '.join(_FACTS_OF_COUNTS)} FROM {counts}").fetchall()
    return _facts(found)


def _facts(found: Sequence[Any]) -> Facts:
    return Facts(**dict(zip(Facts.__struct_fields__, found, strict=True)))


def _event_types(con: Connection, rows: str) -> tuple[str, ...] | None:
    """The event types of a relation, None when they are too many."""
    types = con.execute(f"SELECT DISTINCT event_type FROM {rows} LIMIT {EVENT_TYPES_MAX + 1}").fetchall()
    return tuple(sorted(kind for (kind,) in types)) if len(types) <= EVENT_TYPES_MAX else None


@contextmanager
def attached(con: Connection, path: Path, *, options: str = "READ_ONLY") -> Iterator[str]:
    """The alias of a DuckDB file attached meanwhile; its own name, so that tasks side by side do not meet."""
    alias = fresh_name("segment")
    con.execute(f"ATTACH {quoted(str(path))} AS {alias} ({options})")
    try:
        yield alias
    except BaseException:
        for statement in ("ROLLBACK", f"DETACH {alias}"):
            with suppress(DuckError):
                con.execute(statement)
        raise
    con.execute(f"DETACH {alias}")


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment is told about itself, beside what its rows say."""

    level: int
    day: str | None
    move_id: str
    part: int
    parts: int
    inputs: tuple[str, ...]
    created_us: int


def write(
    con: Connection,
    folder: Path,
    rows: Sequence[str],
    label: Label,
    *,
    ranges: Callable[[str], tuple[ShardRange, ...]],
    rollup_rows_min: int,
    block_bytes: int,
    group_rows: int,
    text: str = PACKED_TEXT,
    facts: Facts | None = None,
    at_once: int = 1,
    user_rollups: Sequence[Definition] = (),
    beside: Sequence[str] = (),
    accept: Callable[[list[Any]], bool] = lambda _: True,
    reach: Reach = unheard,
) -> Segment | None:
    """The segment made of `rows`, on disk under its final name; None, and nothing on disk, when they are not accepted.

    rows             relations with the columns of events, not all empty, each read once and in any order, but all rows of
                     one before those of the next in the order of segments
    ranges           alias of the open file, its events and rollups written → the shard ranges
    rollup_rows_min  rows from which it carries rollups
    block_bytes      BLOCK_SIZE of the file
    group_rows       its ROW_GROUP_SIZE
    text             how texts are stored: PACKED_TEXT or PLAIN_TEXT
    facts            of all rows, when they are known: then neither they nor `beside` are measured
    at_once          statements that run side by side: those for `rows` when they are several, and those that read what they wrote
    user_rollups     definitions of rollups it carries too, if it carries rollups
    accept           whether the values of the aggregates `beside` over what was written are right
    reach            told the name of every step before and after it

    Raises what DuckDB and the file system raise, and TierCorrupt when the file is not what was written; the temporary
    file is then removed if it can be.
    """
    segment_id = uuid_utils.uuid7().hex
    tmp, final = folder / f"{segment_id}{TMP_SUFFIX}", folder / f"{segment_id}{SUFFIX}"
    try:
        options = f"STORAGE_VERSION 'v1.5.0', BLOCK_SIZE {block_bytes}, ROW_GROUP_SIZE {group_rows}"
        with named(reach, "write segment"), attached(con, tmp, options=options) as alias:
            events = f"{alias}.events"
            con.execute(f"CREATE TABLE {events} ({_columns(text)})")
            if at_once > 1 and len(rows) > 1:
                _insert_side_by_side(con, events, rows, at_once=at_once)
                con.execute(f"SET threads = {at_once}")  # to write, each had one; what reads it all may have them together
            else:
                for piece in rows:
                    con.execute(_insert(events, piece))
            [(count,)] = con.execute(f"SELECT count(*) FROM {events}").fetchall()
            with_rollups = count >= rollup_rows_min
            found: list[tuple[Facts, list[Any]]] = [] if facts is None else [(facts, [])]
            tasks = [] if found else [partial(_measure, con, events, beside, found)]
            tasks += [partial(_run, con, rollups.create_statements(alias, events))] if with_rollups else []
            side_by_side(tasks, at_once=at_once)
            con.execute(rollups.create_total(alias, None if with_rollups else events))
            if with_rollups and user_rollups:
                create(con, f"{alias}.{TABLE}", events, user_rollups)
            [(facts, values)] = found
            if not accept(values):
                raise _NotAccepted
            segment = Segment(
                segment_id=segment_id,
                **msgspec.structs.asdict(label),
                **msgspec.structs.asdict(facts),
                file_bytes=0,
                event_types=_event_types(con, f"{alias}.rollup_hourly" if with_rollups else events),
                has_rollups=with_rollups,
                ranges=ranges(alias),
            )
            _write_info(con, alias, segment)
            con.execute(f"CHECKPOINT {alias}")
        with named(reach, "read back"):
            _compare(con, tmp, facts)
        with named(reach, "write sum"):
            write_sum(final, sum_of(tmp))
        _make_durable(tmp, final, reach)
    except _NotAccepted:
        _remove(tmp)
        return None
    except BaseException:
        with suppress(OSError):
            _remove(tmp)
            sum_path(final).unlink(missing_ok=True)
        raise
    return msgspec.structs.replace(segment, file_bytes=final.stat().st_size)


def _columns(text: str) -> str:
    """The columns of a new table of events, with the compression of its texts."""
    return ", ".join(
        f"{column.name} {column.sql_type}"
        + ("" if column.nullable else " NOT NULL")
        + (f" USING COMPRESSION {text}" if column.name in ("content", "metadata") else "")
        for column in COLUMNS
    )


def _run(con: Connection, statements: Sequence[str]) -> None:
    with con.cursor() as own:
        for statement in statements:
            own.execute(statement)


def _measure(con: Connection, rows: str, beside: Sequence[str], found: list[tuple[Facts, list[Any]]]) -> None:
    with con.cursor() as own:
        found.append(measured(own, rows, beside=beside))


def _insert(events: str, piece: str) -> str:
    """A statement that is a transaction of its own: in one with others, DuckDB would compress all rows again at the commit."""
    return f"INSERT INTO {events} SELECT {COLUMN_LIST} FROM {piece} ORDER BY {_SORTED}"


def _insert_side_by_side(con: Connection, events: str, pieces: Sequence[str], *, at_once: int) -> None:
    """Insert every piece; each commits after the one before it, so that rows lie in the order of the pieces."""

    def insert(piece: str, before: Future[None] | None) -> None:
        if before is not None and before.done():
            before.result()  # after an error nothing more is begun
        with con.cursor() as own:
            own.execute("BEGIN")
            own.execute(_insert(events, piece))
            if before is not None:
                before.result()
            own.execute("COMMIT")

    with ThreadPoolExecutor(at_once, "thermocline-merge") as pool:
        last: Future[None] | None = None
        for piece in pieces:
            last = pool.submit(insert, piece, last)
        if last is not None:
            last.result()


class _NotAccepted(Exception):
    """Leaves `write` with nothing written."""


def _remove(tmp: Path) -> None:
    for path in (tmp, tmp.with_name(tmp.name + ".wal")):
        path.unlink(missing_ok=True)


def _write_info(con: Connection, alias: str, segment: Segment) -> None:
    row = msgspec.structs.asdict(segment) | {"format": FORMAT, "ranges": [_range_row(one) for one in segment.ranges]}
    table = pa.Table.from_pylist([{name: row[name] for name in _INFO_SCHEMA.names}], schema=_INFO_SCHEMA)
    with registered(con, table) as source:
        con.execute(f"CREATE TABLE {alias}.segment_info AS SELECT * FROM {source}")


def _range_row(one: ShardRange) -> dict[str, Any]:
    return msgspec.structs.asdict(one) | {"after": str(one.after), "upto": str(one.upto)}


def read_info(con: Connection, alias: str, *, path: Path) -> Segment:
    """What an attached segment says of itself. TierCorrupt for a format this version does not know."""
    [row] = con.sql(f"SELECT * FROM {alias}.segment_info").to_arrow_table().to_pylist()
    found = row.pop("format")
    if found != FORMAT:
        raise TierCorrupt(f"segment {path}: its format is {found!r}, this version knows {FORMAT!r}; upgrade Thermocline")
    ranges = [
        ShardRange(**(one | {"after": Position.parse(one["after"]), "upto": Position.parse(one["upto"])}))
        for one in row.pop("ranges")
    ]
    types = row.pop("event_types")
    return Segment(
        **{name: row[name] for name in row if name != "inputs"},
        inputs=tuple(row["inputs"]),
        event_types=None if types is None else tuple(types),
        ranges=tuple(ranges),
        file_bytes=path.stat().st_size,
    )


def _compare(con: Connection, path: Path, facts: Facts) -> None:
    """Read the closed file again; TierCorrupt if its rows are not those that went in."""
    with attached(con, path) as alias:
        found = con.execute(f"SELECT count(*), {SEGMENT_CHECKSUM} FROM {alias}.events").fetchall()
    if found != [(facts.rows, facts.checksum)]:
        raise TierCorrupt(
            f"{path}: read back {found[0][0]} rows that are not the {facts.rows} written; "
            "nothing was lost, the events stay where they were; check memory and disk, then run again"
        )


def _make_durable(tmp: Path, final: Path, reach: Reach) -> None:
    """Sync, rename, sync the folder."""
    with named(reach, "sync segment"):
        _fsync(tmp)
    with named(reach, "rename segment"):
        tmp.rename(final)
    with named(reach, "sync folder"):
        _fsync(final.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
