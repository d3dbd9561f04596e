"""One Parquet file of the cold tier: how it is written so that the same rows are the same bytes, and how it is read back.

pyarrow writes; a row group is 65,536 rows (or 64 MiB of text) in contiguous slices of 16,384, whatever pieces they arrive in.
Polars, which has no code in common with it, reads the finished file in full; what it finds is compared with what went in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.errors import TierCorrupt

GROUP_ROWS: Final = 65_536
"""With twice as many a file is 0.3 % smaller, and reading one conversation of it takes 64 instead of 36 ms of CPU."""
PIECE_ROWS: Final = 16_384
"""Of a contiguous slice: bytes depend on where slices end. A whole group in one would be there twice when it is made."""
GROUP_BYTES: Final = 64 << 20
"""Of content and metadata: beyond it a row group ends early, so that memory stays bounded with events of a MiB each."""
READ_BACK_ROWS: Final = 32_768
"""Read at once: with 131,072 it took 120 MiB more and hardly less time."""
ZSTD_LEVEL: Final = 3
"""Real conversations take 15 % less at level 6, but unique text takes twice as long to write."""
_PLAIN: Final = ("event_id", "content", "metadata")
"""Columns whose values seldom repeat as a whole: no dictionary is tried, and no bounds are kept."""
_RATES: Final = ("sample_rate", "rate")
"""Numbers of which there are few different ones."""


_ENCODINGS: Final = {
    pa.int64(): "DELTA_BINARY_PACKED",
    pa.timestamp("us", tz="UTC"): "DELTA_BINARY_PACKED",
    pa.float64(): "BYTE_STREAM_SPLIT",
}


class Written(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    rows: int
    file_bytes: int


class ParquetFile:
    """A file being written. `add` rows in their final order, then `close`; `abandon` removes it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """path  must not exist; its folder must"""
        self.path = path
        self._schema = schema
        self._pieces: list[pa.Table] = []
        self._piece: list[pa.Table] = []
        """Slices that are to become the next of the pieces."""
        self._piece_rows = self._waiting_rows = self._waiting_bytes = 0
        self._rows = 0
        import pyarrow.parquet as pq  # here and below: what only the archive needs is imported when it is used

        self._sink = pa.OSFile(str(path), "wb")
        bounded = [name for name in schema.names if name not in _PLAIN]
        encodings = {
            field.name: _ENCODINGS[field.type] for field in schema if field.type in _ENCODINGS and field.name not in _RATES
        }
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=[name for name in bounded if name not in encodings],
            column_encoding=encodings,
            write_statistics=bounded,
            write_page_checksum=True,
            store_schema=False,
            version="2.6",
        )

    @property
    def file_bytes(self) -> int:
        """Bytes on disk so far: what waits for its row group to be full is not in them."""
        return int(self._sink.tell())

    def add(self, rows: pa.Table) -> None:
        """Rows with the columns of the schema, after all that were added before."""
        while rows.num_rows:
            count, size, full = self._fitting(rows)
            self._piece.append(rows.slice(0, count))
            self._piece_rows += count
            self._waiting_rows, self._waiting_bytes = self._waiting_rows + count, self._waiting_bytes + size
            rows = rows.slice(count)
            if self._piece_rows == PIECE_ROWS or full:
                self._end_piece()
            if full:
                self._write_group()

    def _fitting(self, rows: pa.Table) -> tuple[int, int, bool]:
        """(how many of the rows still belong to the piece, the bytes of their texts, whether the group is full with them)."""
        count = min(rows.num_rows, PIECE_ROWS - self._piece_rows)
        texts = [name for name in ("content", "metadata") if name in rows.column_names]
        if not texts:
            return count, 0, self._waiting_rows + count == GROUP_ROWS
        lengths = [pc.fill_null(pc.binary_length(rows[name].slice(0, count)), 0).to_numpy() for name in texts]
        ends = self._waiting_bytes + np.cumsum(np.sum(lengths, axis=0, dtype=np.int64))
        count = min(count, int(np.searchsorted(ends, GROUP_BYTES)) + 1)
        return (
            count,
            int(ends[count - 1]) - self._waiting_bytes,
            (self._waiting_rows + count == GROUP_ROWS or int(ends[count - 1]) >= GROUP_BYTES),
        )

    def close(self, facts: Mapping[str, str]) -> Written:
        """Finish the file with `facts` as its key-value metadata, and sync it."""
        if self._waiting_rows:
            self._end_piece()
            self._write_group()
        self._writer.add_key_value_metadata(dict(sorted(facts.items())))
        self._writer.close()
        self._sink.close()
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return Written(path=self.path, rows=self._rows, file_bytes=self.path.stat().st_size)

    def abandon(self) -> None:
        self._writer.is_open = False  # or its destructor would write the end of the file, into a sink that is closed
        self._sink.close()
        self.path.unlink(missing_ok=True)

    def _end_piece(self) -> None:
        whole = len(self._piece) == 1 and all(column.num_chunks == 1 for column in self._piece[0].columns)
        if self._piece:
            self._pieces.append(self._piece[0] if whole else pa.concat_tables(self._piece).combine_chunks())
        self._piece, self._piece_rows = [], 0

    def _write_group(self) -> None:
        self._writer.write_table(pa.concat_tables(self._pieces), row_group_size=GROUP_ROWS)
        self._rows += self._waiting_rows
        self._pieces, self._waiting_rows, self._waiting_bytes = [], 0, 0


def sums_read_back(path: Path) -> tuple[int, int]:
    """(rows, sum of their `row_hashes`) of a finished file as Polars reads it. TierCorrupt when it cannot."""
    import polars as pl
    import pyarrow.parquet as pq

    try:
        groups = pq.read_metadata(path)
        source = pl.scan_parquet(path, glob=False, use_statistics=False, hive_partitioning=False)
        first = total = 0
        for number in range(groups.num_row_groups):
            end = first + groups.row_group(number).num_rows
            for start in range(first, end, READ_BACK_ROWS):
                total += sum_of(source.slice(start, min(READ_BACK_ROWS, end - start)).collect().hash_rows().to_numpy())
            first = end
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, pa.ArrowException) as exc:
        raise TierCorrupt(f"{path}: cannot be read back ({_line(exc)}); nothing was archived, check memory and disk") from exc
    return first, total


def row_hashes(rows: pa.Table) -> int:
    """The sum of the hashes of rows, as `sums_read_back` finds it in this process."""
    import polars as pl

    found = pl.from_arrow(rows)
    assert isinstance(found, pl.DataFrame)
    return sum_of(found.hash_rows().to_numpy())


def sum_of(values: npt.NDArray[np.uint64]) -> int:
    """Their exact sum."""
    return (int((values >> np.uint64(32)).sum()) << 32) + int((values & np.uint64(0xFFFFFFFF)).sum())


class DamagedGroup(NamedTuple):
    """A row group with a page that is not what was written."""

    number: int
    start: int
    """Its first row in the file, from 0."""
    end: int
    problem: str


def page_problem(path: Path) -> str:
    """What is wrong with the pages of a file, by their checksums; empty when nothing is."""
    try:
        groups = _damaged_groups(path)
    except (OSError, pa.ArrowException) as exc:
        return _line(exc)
    return "; ".join(f"{group.problem}, in rows {group.start} to {group.end - 1}" for group in groups[:1])


def damaged_groups(path: Path) -> list[DamagedGroup] | None:
    """Row groups of which a page fails its checksum or cannot be read; None when the footer cannot."""
    try:
        return _damaged_groups(path)
    except (OSError, pa.ArrowException):
        return None


def _damaged_groups(path: Path) -> list[DamagedGroup]:
    import pyarrow.parquet as pq

    found = []
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        start = 0
        for number in range(file.num_row_groups):
            end = start + file.metadata.row_group(number).num_rows
            try:
                file.read_row_group(number)
            except (OSError, pa.ArrowException) as exc:
                found.append(DamagedGroup(number, start, end, _line(exc)))
            start = end
    return found


def conversations_in(path: Path, groups: Sequence[int]) -> list[tuple[str, int, int, int]]:
    """(conversation_id, lowest seq, highest seq, events) in row groups of a file of events, as far as those two columns are
    sound; by name."""
    import pyarrow.parquet as pq

    tables = []
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in groups:
            with suppress(OSError, pa.ArrowException):
                tables.append(file.read_row_group(number, columns=["conversation_id", "seq"]))
    if not tables:
        return []
    counts = pa.concat_tables(tables).group_by("conversation_id").aggregate([("seq", "min"), ("seq", "max"), ("seq", "count")])
    rows = counts.select(["conversation_id", "seq_min", "seq_max", "seq_count"]).sort_by("conversation_id").to_pylist()
    return [(row["conversation_id"], row["seq_min"], row["seq_max"], row["seq_count"]) for row in rows]


def facts_of(path: Path) -> dict[str, str]:
    """The key-value metadata of a file. TierCorrupt when it is no Parquet file."""
    import pyarrow.parquet as pq

    try:
        found: Any = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as exc:
        raise TierCorrupt(f"{path}: cannot be read ({_line(exc)}); restore it from a copy") from exc
    return {key.decode(): value.decode() for key, value in found.items()}


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
