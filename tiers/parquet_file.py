"""One Parquet file of the cold tier: how it is written so that the same rows are the same bytes, and how it is read back.

pyarrow writes; every row group is one contiguous slice of 131,072 rows, whatever pieces the rows arrive in. Polars, which has no
code in common with it, reads the finished file in full; what it finds is compared with what went in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from thermocline.errors import TierCorrupt

GROUP_ROWS: Final = 131_072
ZSTD_LEVEL: Final = 3
_PLAIN: Final = ("event_id", "content", "metadata")
"""Columns whose values seldom repeat as a whole: no dictionary is tried, and no bounds are kept."""


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
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._rows = 0
        self._sink = pa.OSFile(str(path), "wb")
        bounded = [name for name in schema.names if name not in _PLAIN]
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=bounded,
            write_statistics=bounded,
            write_page_checksum=True,
            store_schema=False,
            version="2.6",
        )

    @property
    def rows(self) -> int:
        """Rows added."""
        return self._rows + self._waiting_rows

    @property
    def file_bytes(self) -> int:
        """Bytes on disk so far: what waits for its row group to be full is not in them."""
        return int(self._sink.tell())

    def add(self, rows: pa.Table) -> None:
        """Rows with the columns of the schema, after all that were added before."""
        while rows.num_rows:
            piece = rows.slice(0, GROUP_ROWS - self._waiting_rows)
            self._waiting.append(piece)
            self._waiting_rows += piece.num_rows
            rows = rows.slice(piece.num_rows)
            if self._waiting_rows == GROUP_ROWS:
                self._write_group()

    def close(self, facts: Mapping[str, str]) -> Written:
        """Finish the file with `facts` as its key-value metadata, and sync it."""
        if self._waiting_rows:
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
        self._sink.close()
        self.path.unlink(missing_ok=True)

    def _write_group(self) -> None:
        group = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._waiting_rows = [], 0
        self._writer.write_table(group, row_group_size=GROUP_ROWS)
        self._rows += group.num_rows


def read_back(path: Path) -> Iterator[pa.Table]:
    """All rows of a finished file as Polars reads them, a row group at a time. TierCorrupt when it cannot."""
    try:
        source = pl.scan_parquet(path, glob=False, use_statistics=False, hive_partitioning=False)
        rows = source.select(pl.len()).collect().item()
        for first in range(0, rows, GROUP_ROWS):
            yield source.slice(first, GROUP_ROWS).collect().to_arrow(compat_level=pl.CompatLevel.oldest())
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as exc:
        raise TierCorrupt(f"{path}: cannot be read back ({_line(exc)}); nothing was archived, check memory and disk") from exc


def page_problem(path: Path) -> str:
    """What is wrong with the pages of a file, by their checksums; empty when nothing is."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for number in range(file.num_row_groups):
                file.read_row_group(number)
    except (OSError, pa.ArrowException) as exc:
        return _line(exc)
    return ""


def facts_of(path: Path) -> dict[str, str]:
    """The key-value metadata of a file. TierCorrupt when it is no Parquet file."""
    try:
        found: Any = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as exc:
        raise TierCorrupt(f"{path}: cannot be read ({_line(exc)}); restore it from a copy") from exc
    return {key.decode(): value.decode() for key, value in found.items()}


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
