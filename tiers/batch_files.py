"""The Parquet files of one batch, written from SQL into a local folder and read back before anything leaves it.

What goes in is summed while it streams by; what Polars reads back from the finished file must sum to the same. DuckDB makes the
next rows while the last ones are written.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT

from .checksum import HASH_KIND, row_hash
from .cold_schema import SCHEMAS, SORT, SQL_TYPES
from .duck import Connection, quoted
from .ledger import ColdFile
from .parquet_file import GROUP_ROWS, ParquetFile, row_hashes, sums_read_back
from .segment_file import EVENT_TYPES_MAX

T = TypeVar("T")
_BOUNDS: Final = {
    "events": ("timestamp", "timestamp", True),
    "rollup_hourly": ("timestamp_min", "timestamp_max", True),
    "rollup_conversation": ("started_at", "ended_at", True),
    "rollup_task": ("", "", True),
    "rollup_quantile": ("hour", "hour", False),
    "rollup_decision": ("started_at", "started_at", True),
}
"""Kind → (column with the least time, column with the greatest, whether it has conversations)."""


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """A finished local file and what the ledger will say of it."""

    file: ColdFile
    key: str
    path: Path


class BatchFiles:
    """Files of one batch in `folder`, named and numbered. Not thread-safe."""

    def __init__(
        self, con: Connection, folder: Path, *, batch_id: str, cold_url: str, ranges: str, created_us: int, bytes_max: int
    ) -> None:
        """con        whose relations the SELECTs read; timestamps in UTC
        folder     there, and empty
        ranges     text for the files' `thermocline.ranges`
        bytes_max  of one file, about: it ends with the row group that passes this
        """
        con.execute("SET arrow_lossless_conversion = true")  # UUIDs leave DuckDB as what they are
        [(self._hash_kind,)] = con.execute(f"SELECT {HASH_KIND}").fetchall()
        self._con = con
        self._beside = con.cursor()  # for what is asked while `con` streams
        self._folder = folder
        self._batch_id = batch_id
        self._cold_url = cold_url
        self._ranges = ranges
        self._created_us = created_us
        self._bytes_max = bytes_max
        self.staged: list[Staged] = []

    def write(self, kind: str, selects: Sequence[str], *, day: str) -> None:
        """Write the rows of these SELECTs, with the columns of `kind`, one after the other; nothing when there are none.

        selects  all rows of one are before those of the next in the order of SORT; within one they are sorted here
        """
        order = ", ".join(SORT[kind])
        self._write(kind, [f"SELECT * FROM ({select}) ORDER BY {order}" for select in selects], lambda _: day)

    def write_days(self, select: str) -> None:
        """Write events of many days, a file or more for each. `select` gives a column `_day` beside those of events: the days
        since 1970."""
        self._write("events", [f"SELECT * FROM ({select}) ORDER BY _day, {', '.join(SORT['events'])}"], _day_text)

    def _write(self, kind: str, selects: Sequence[str], day_of: Callable[[int], str]) -> None:
        file: _Open | None = None
        try:
            for day, rows in prefetched(itertools.chain.from_iterable(self._pieces(kind, select) for select in selects)):
                if file is not None and (day != file.day or file.parquet.file_bytes >= self._bytes_max):
                    self._finish(kind, file, day_of(file.day))
                    file = None
                if file is None:
                    number = len(self.staged) + 1
                    file = _Open(day, ParquetFile(self._folder / f"{self._batch_id}-{number:05d}.parquet", SCHEMAS[kind]))
                file.add(rows, kind)
            if file is not None:
                self._finish(kind, file, day_of(file.day))
        except BaseException:
            if file is not None:
                file.parquet.abandon()
            raise

    def _pieces(self, kind: str, select: str) -> Iterator[tuple[int, pa.Table]]:
        """(day, rows of that day only) as they stream by, at most a row group at a time."""
        types = SQL_TYPES[kind]
        columns = ", ".join(f"{name}::{sql_type} AS {name}" for name, sql_type in types.items())
        by_day = "_day" in select
        plain = f"SELECT {columns}{', _day' if by_day else ''} FROM ({select})"
        summed = f"SELECT *, {row_hash(kind)} AS _hash FROM ({plain})"
        for batch in self._con.sql(summed).to_arrow_reader(GROUP_ROWS):
            table = pa.Table.from_batches([batch])
            days = table["_day"].to_numpy() if by_day else np.zeros(table.num_rows, np.int64)
            borders = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), table.num_rows]
            for first, last in itertools.pairwise(borders):  # a batch is never empty
                yield int(days[first]), table.slice(first, last - first)

    def _finish(self, kind: str, file: _Open, day: str) -> None:
        """Close a file, read it back, and note what it is."""
        facts = {
            "thermocline.format": FORMAT,
            "thermocline.kind": kind,
            "thermocline.ranges": self._ranges,
            "thermocline.checksum": f"{self._hash_kind}:{file.row_hash}",
        }
        written = file.parquet.close(facts)
        rows, hashes = sums_read_back(written.path)
        if (rows, hashes) != (written.rows, file.polars_hash):
            raise TierCorrupt(
                f"{written.path}: read back {rows} rows that are not the {written.rows} written; nothing was archived, "
                "the events stay where they were; check memory and disk, then run again"
            )
        key = f"{kind}/day={day}/{written.path.name}"
        described = self._described(kind, written.path, day)
        self.staged.append(
            Staged(
                key=key,
                path=written.path,
                file=ColdFile(
                    file_id=written.path.stem,
                    batch_id=self._batch_id,
                    kind=kind,
                    day=day,
                    url=f"{self._cold_url}/{key}",
                    rows=written.rows,
                    file_bytes=written.file_bytes,
                    checksum=sha256_of(written.path),
                    created_us=self._created_us,
                    **described,
                ),
            )
        )

    def _described(self, kind: str, path: Path, day: str) -> dict[str, Any]:
        """Bounds of a file's rows, for pruning."""
        low, high, with_conversations = _BOUNDS[kind]
        source = f"read_parquet({quoted(str(path))}, hive_partitioning = false)"
        times = f"epoch_us(min({low})), epoch_us(max({high}))" if low else "NULL, NULL"
        names = "min(conversation_id), max(conversation_id)" if with_conversations else "'', ''"
        [(first, last, lowest, highest)] = self._beside.execute(f"SELECT {times}, {names} FROM {source}").fetchall()
        types: tuple[str, ...] | None = None
        if "event_type" in SQL_TYPES[kind]:
            found = self._beside.execute(f"SELECT DISTINCT event_type FROM {source} LIMIT {EVENT_TYPES_MAX + 1}").fetchall()
            types = tuple(sorted(name for (name,) in found)) if len(found) <= EVENT_TYPES_MAX else None
        start_us = int(dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC).timestamp() * 1e6)
        return {
            "timestamp_min_us": start_us if first is None else first,
            "timestamp_max_us": start_us if last is None else last,
            "conversation_min": lowest,
            "conversation_max": highest,
            "event_types": types,
        }


class _Open:
    """A file being written, and the sums of what went in."""

    def __init__(self, day: int, parquet: ParquetFile) -> None:
        self.day = day
        self.parquet = parquet
        self.row_hash = 0
        self.polars_hash = 0

    def add(self, rows: pa.Table, kind: str) -> None:
        self.row_hash += int(pc.sum(pc.cast(rows["_hash"], pa.decimal128(38, 0))).as_py())
        schema = SCHEMAS[kind]
        table = pa.Table.from_arrays([rows[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
        self.polars_hash += row_hashes(_plain(table))
        self.parquet.add(table)


def _plain(table: pa.Table) -> pa.Table:
    """The rows with UUIDs as bytes, as Polars reads them from a file."""
    columns = [
        pa.chunked_array([chunk.storage for chunk in column.chunks], pa.binary(16)).cast(pa.binary())
        if isinstance(column.type, pa.UuidType)
        else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prefetched(items: Iterator[T], *, depth: int = 2) -> Iterator[T]:
    """The same items, made by a thread of its own that is at most `depth` ahead. Its errors are raised here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put((item, error), timeout=0.05)
                return

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
            put(None, None)
        except BaseException as exc:
            put(None, exc)

    maker = threading.Thread(target=make, name="thermocline-rows", daemon=True)
    maker.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        maker.join()


def _day_text(day: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()
