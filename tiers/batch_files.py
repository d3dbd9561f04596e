"""The Parquet files of one batch, written from SQL into a local folder and read back before anything leaves it.

What goes in is summed while it streams by; what Polars reads back from the finished file must sum to the same. Three things go on
at once: DuckDB makes the next rows, the last ones are summed, and full files are encoded and read back.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.errors import TierCorrupt
from thermocline.event import FORMAT

from .checksum import HASH_KIND, row_hash
from .cold_bounds import BoundsOf
from .cold_schema import SCHEMAS, SORT, SQL_TYPES
from .duck import Connection
from .ledger import ColdFile
from .merge_split import day_text
from .parquet_file import GROUP_ROWS, PIECE_ROWS, ParquetFile, row_hashes, sums_read_back

T = TypeVar("T")
FINISHING_MAX: Final = 2
"""Files at once that have all their rows and are closed and read back."""


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
                for kind, day, rows, may_end in prefetched(self._pieces(parts)):
                    if file is not None and not file.takes(kind, day, self._bytes_max if may_end else None):
                        finishing.append(beside.submit(self._finished, file))
                        file = None
                    if file is None:
                        if len(finishing) >= FINISHING_MAX:
                            self.staged.append(finishing.popleft().result())
                        file = self._opened(kind, day)
                    file.add(rows)
                if file is not None:
                    finishing.append(beside.submit(self._finished, file))
                    file = None
                self.staged += [one.result() for one in finishing]
            except BaseException:
                if file is not None:
                    file.parquet.abandon()
                raise

    def _pieces(self, parts: Iterable[Part]) -> Iterator[tuple[str, str, pa.Table, bool]]:
        """(kind, day, rows of that day only, whether the file before them may end) as they stream by, at most PIECE_ROWS at a
        time. A file may end where a row group's worth of a part does, however small the pieces are."""
        for part in parts:
            passed = groups = 0
            for batch in self._con.sql(_sorted(part)).to_arrow_reader(PIECE_ROWS):
                table = pa.Table.from_batches([batch])
                may_end = passed == 0 or passed // GROUP_ROWS > groups
                groups, passed = passed // GROUP_ROWS, passed + table.num_rows
                if part.day is not None:
                    yield part.kind, part.day, table, may_end
                    continue
                days = table["_day"].to_numpy()
                borders = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), table.num_rows]
                for first, last in itertools.pairwise(borders):  # a batch is never empty
                    yield part.kind, day_text(int(days[first])), table.slice(first, last - first), may_end

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

    def takes(self, kind: str, day: str, bytes_max: int | None) -> bool:
        """Whether rows of that kind and day go on in this file; bytes_max None: however large it is."""
        return (kind, day) == (self.kind, self.day) and (bytes_max is None or self.parquet.file_bytes < bytes_max)

    def add(self, rows: pa.Table) -> None:
        self.row_hash += int(pc.sum(pc.cast(rows["_hash"], pa.decimal128(38, 0))).as_py())
        schema = SCHEMAS[self.kind]
        table = pa.Table.from_arrays([rows[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
        self.bounds.add(table)
        self.polars_hash += row_hashes(_plain(table))
        self.parquet.add(table)


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
