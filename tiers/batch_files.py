"""The Parquet files of one batch, written from SQL into a local folder and read back before anything leaves it.

What goes in is summed while it streams by; what Polars reads back from the finished file must sum to the same. Three things go on
at once: DuckDB makes the next rows and they are summed, the row group before them is encoded, and full files are read back.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT

from .checksum import HASH_KIND, row_hash
from .cold_bounds import BoundsOf
from .cold_schema import SCHEMAS, SORT, SQL_TYPES
from .duck import Connection
from .ledger import ColdFile
from .merge_split import day_text
from .parquet_file import GROUP_ROWS, PIECE_ROWS, ParquetFile, row_hashes, sum_of, sums_read_back

T = TypeVar("T")
FINISHING_MAX: Final = 2
"""Files at once that have all their rows and are closed and read back."""
WAITING_BYTES: Final = 32 << 20
"""Of rows that are made and summed before they are asked for: about what comes while a row group is encoded."""


class Part(NamedTuple):
    """Rows for the files of a batch."""

    kind: str
    select: str
    """SELECT of the columns of the kind, in any order of rows."""
    day: str | None = None
    """The UTC day of their files. None: a column `_day` of the SELECT says it, as days since 1970, and each has its own files."""


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
        self._folder = folder
        self._batch_id = batch_id
        self._cold_url = cold_url
        self._ranges = ranges
        self._created_us = created_us
        self._bytes_max = bytes_max
        self._files = 0
        self._reading_back = threading.Lock()
        """Polars reads a row group with all its threads: two at once would only take twice the memory."""
        self.staged: list[Staged] = []

    def write(self, parts: Iterable[Part]) -> None:
        """Write the rows of all parts, each part sorted for itself; nothing when there are none.

        parts  asked for one by one, in another thread. Neighbours of one kind and day share files: all rows of one are before
               those of the next in the order of SORT
        """
        file: _Open | None = None
        finishing: deque[Future[Staged]] = deque()
        with ThreadPoolExecutor(FINISHING_MAX, "thermocline-read-back") as beside:
            try:
                for rows in prefetched(self._pieces(parts), size=lambda piece: piece.table.nbytes, size_max=WAITING_BYTES):
                    if file is not None and not file.takes(rows, self._bytes_max):
                        finishing.append(beside.submit(self._finished, file))
                        file = None
                    if file is None:
                        if len(finishing) >= FINISHING_MAX:
                            self.staged.append(finishing.popleft().result())
                        file = self._opened(rows.kind, rows.day)
                    file.add(rows)
                if file is not None:
                    finishing.append(beside.submit(self._finished, file))
                    file = None
                self.staged += [one.result() for one in finishing]
            except BaseException:
                if file is not None:
                    file.parquet.abandon()
                raise

    def _pieces(self, parts: Iterable[Part]) -> Iterator[_Piece]:
        """The rows as they stream by, at most PIECE_ROWS at a time. A file may end where a row group's worth of a part does,
        however small the pieces are."""
        for part in parts:
            passed = groups = 0
            for batch in self._con.sql(_sorted(part)).to_arrow_reader(PIECE_ROWS):
                table = pa.Table.from_batches([batch])
                may_end = passed == 0 or passed // GROUP_ROWS > groups
                groups, passed = passed // GROUP_ROWS, passed + table.num_rows
                if part.day is not None:
                    yield _summed(part.kind, part.day, table, may_end)
                    continue
                days = table["_day"].to_numpy()
                borders = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), table.num_rows]
                for first, last in itertools.pairwise(borders):  # a batch is never empty
                    yield _summed(part.kind, day_text(int(days[first])), table.slice(first, last - first), may_end)

    def _opened(self, kind: str, day: str) -> _Open:
        self._files += 1
        return _Open(kind, day, ParquetFile(self._folder / f"{self._batch_id}-{self._files:05d}.parquet", SCHEMAS[kind]))

    def _finished(self, file: _Open) -> Staged:
        """Close a file, read it back, and say what it is. In a thread of its own; the file is gone when that fails."""
        facts = {
            "thermocline.format": FORMAT,
            "thermocline.kind": file.kind,
            "thermocline.ranges": self._ranges,
            "thermocline.checksum": f"{self._hash_kind}:{file.row_hash}",
        }
        try:
            written = file.parquet.close(facts)
            with self._reading_back:
                rows, hashes = sums_read_back(written.path)
            if (rows, hashes) != (written.rows, file.polars_hash):
                raise TierCorrupt(
                    f"{written.path}: read back {rows} rows that are not the {written.rows} written; nothing was archived, "
                    "the events stay where they were; check memory and disk, then run again"
                )
            checksum = sha256_of(written.path)
        except BaseException:
            file.parquet.abandon()
            raise
        key = f"{file.kind}/day={file.day}/{written.path.name}"
        return Staged(
            key=key,
            path=written.path,
            file=ColdFile(
                file_id=written.path.stem,
                batch_id=self._batch_id,
                kind=file.kind,
                day=file.day,
                url=f"{self._cold_url}/{key}",
                rows=written.rows,
                file_bytes=written.file_bytes,
                checksum=checksum,
                created_us=self._created_us,
                **msgspec.structs.asdict(file.bounds.bounds()),
            ),
        )


class _Open:
    """A file being written, with the sums and the bounds of what went in."""

    def __init__(self, kind: str, day: str, parquet: ParquetFile) -> None:
        self.kind = kind
        self.day = day
        self.parquet = parquet
        self.bounds = BoundsOf(kind, day)
        self.row_hash = 0
        self.polars_hash = 0

    def takes(self, rows: _Piece, bytes_max: int) -> bool:
        """Whether the rows go on in this file."""
        return (rows.kind, rows.day) == (self.kind, self.day) and (not rows.may_end or self.parquet.file_bytes < bytes_max)

    def add(self, rows: _Piece) -> None:
        self.row_hash += rows.row_hash
        self.polars_hash += rows.polars_hash
        self.bounds.add(rows.table)
        self.parquet.add(rows.table)


class _Piece(NamedTuple):
    """Rows of one day with the sums over them."""

    kind: str
    day: str
    table: pa.Table
    may_end: bool
    """Whether the file before them may end."""
    row_hash: int
    polars_hash: int


def _summed(kind: str, day: str, rows: pa.Table, may_end: bool) -> _Piece:
    schema = SCHEMAS[kind]
    table = pa.Table.from_arrays([rows[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
    return _Piece(kind, day, table, may_end, sum_of(rows["_hash"].to_numpy()), row_hashes(_plain(table)))


def _sorted(part: Part) -> str:
    """SELECT of the rows of a part with their types and hashes, in order."""
    by_day = ["_day"] if part.day is None else []
    columns = ", ".join([*(f"{name}::{sql_type} AS {name}" for name, sql_type in SQL_TYPES[part.kind].items()), *by_day])
    ordered = f"SELECT * FROM ({part.select}) ORDER BY {', '.join([*by_day, *SORT[part.kind]])}"
    return f"SELECT *, {row_hash(part.kind)} AS _hash FROM (SELECT {columns} FROM ({ordered}))"


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


def prefetched(items: Iterator[T], *, size: Callable[[T], int], size_max: int) -> Iterator[T]:
    """The same items, made by a thread of its own, which goes on while those that wait have less than `size_max` together; one
    more is in its hands. Its errors are raised here."""
    ready: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    changed = threading.Condition()
    waiting, stopped = 0, False

    def may_go_on() -> bool:
        return waiting < size_max or stopped

    def make() -> None:
        nonlocal waiting
        try:
            for item in items:
                with changed:
                    changed.wait_for(may_go_on)
                    waiting += size(item)
                if stopped:
                    return
                ready.put((item, None))
            ready.put((None, None))
        except BaseException as exc:
            ready.put((None, exc))

    maker = threading.Thread(target=make, name="thermocline-rows", daemon=True)
    maker.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            with changed:
                waiting -= size(item)
                changed.notify()
            yield item
    finally:
        with changed:
            stopped = True
            changed.notify()
        maker.join()
