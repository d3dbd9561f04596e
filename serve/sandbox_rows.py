"""Rows of an answer as frames of bounded size: cut at the caps, and columns typed as the library types them. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import pyarrow as pa

from thermocline.query.result import with_integers

from .sandbox_wire import Limits

MIB: Final = 1 << 20
FRAME_BYTES: Final = MIB
"""A frame is about so large, unless a single row is larger."""
AHEAD_BYTES: Final = 8 * MIB
"""Sums (HUGEINT) of an answer of at most this size are integers where all of them fit, as in the library; of a longer one
they are decimals, as nobody knows what is still to come."""
ROW_EXTRA_BYTES: Final = 64 << 10
"""What a row's encoding takes beside its values, by column."""


class TooLarge(Exception):
    """An answer has a part that no cap can cut."""


class Cutter:
    """One answer on its way. `rows` and `cut_by` are right after the last frame."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._check_digits = False
        self.rows = 0
        self.cut_by: Literal["", "rows_max", "answer_bytes_max"] = ""

    def frames(self, reader: Any, types: Sequence[str]) -> Iterator[bytes]:
        """Arrow streams: the first has the schema alone, every other one batch. TooLarge.

        reader  a RecordBatchReader; types  DuckDB's of its columns
        """
        columns = len(reader.schema)
        if columns > self._limits.columns_max:
            raise TooLarge(f"the answer has {columns} columns, more than sandbox.columns_max ({self._limits.columns_max}) allows")
        batches: Iterator[pa.RecordBatch] = iter(self._capped(reader))
        wide = [place for place, kind in enumerate(types) if kind == "HUGEINT"]
        self._check_digits = any("HUGEINT" in kind for kind in types)
        schema = reader.schema
        if wide:
            ahead, whole = _ahead(batches)
            table = pa.Table.from_batches(ahead, schema=schema)
            if whole:
                table = with_integers(table, wide)
                schema = table.schema
            batches = itertools.chain(table.to_batches(), batches)
        yield _stream(schema, None)
        sent_bytes = 0
        for batch in batches:
            for piece in _pieces(batch):
                if self._check_digits:
                    _check_digits(piece)
                content = _stream(schema, piece)
                row_bytes_max = self._limits.row_bytes_max
                if piece.num_rows == 1 and len(content) > row_bytes_max + ROW_EXTRA_BYTES + 1024 * columns:
                    raise TooLarge(
                        f"a row of the answer has more than sandbox.row_bytes_max ({row_bytes_max // 1024} KiB): "
                        "ask for a part of the value, like left(content, 1000)"
                    )
                sent_bytes += len(content)
                if sent_bytes > self._limits.answer_bytes_max:
                    self.cut_by = "answer_bytes_max"
                    return
                self.rows += piece.num_rows
                yield content

    def _capped(self, reader: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Batches up to the cap of rows. It is known to be one only when there is a row more."""
        left = self._limits.rows_max
        for batch in reader:
            if batch.num_rows > left:
                self.cut_by = "rows_max"
                if left:
                    yield batch.slice(0, left)
                return
            left -= batch.num_rows
            if batch.num_rows:
                yield batch


def _check_digits(batch: pa.RecordBatch) -> None:
    """TooLarge for an integer that Arrow's decimals have no room for: whoever checks what it is sent would not take it."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as exc:
        raise TooLarge(f"an integer of the answer has more than 38 digits: cast it to VARCHAR or DOUBLE ({exc})") from exc


def _ahead(batches: Iterator[pa.RecordBatch]) -> tuple[list[pa.RecordBatch], bool]:
    """(batches of up to AHEAD_BYTES, whether those are all)."""
    found: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        found.append(batch)
        size += batch.nbytes
        if size > AHEAD_BYTES:
            return found, False
    return found, True


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts of about FRAME_BYTES; a part that is much larger than that is cut again, down to single rows."""
    if batch.num_rows <= 1 or batch.nbytes <= FRAME_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _pieces(batch.slice(0, half))
    yield from _pieces(batch.slice(half))


def _stream(schema: pa.Schema, batch: pa.RecordBatch | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        if batch is not None:
            stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content
