"""Events out of a store, as NDJSON, Parquet or CloudEvents: written as they are read, so that any number fits in memory.

DuckDB makes the lines. They come by conversation and seq; what does not fit in memory while it sorts spills into the namespace's
folder. All of it is one cut: what is appended meanwhile is not in it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from thermocline.config import MIB
from thermocline.errors import QueryRefused
from thermocline.event import COLUMN_NAMES, COLUMNS
from thermocline.tiers.duck import quoted
from thermocline.tiers.whole_file import file_errors, whole_file

from .coverage import Coverage
from .patterns import Patterns
from .run import Runner

ExportFormat = Literal["ndjson", "parquet", "cloudevents", "cloudevents-batch"]
FORMATS: Final[tuple[str, ...]] = get_args(ExportFormat)
BATCH_ROWS: Final = 500
GROUP_ROWS: Final = 131_072
GROUP_BYTES: Final = 16 * MIB
"""Of a row group in Parquet, whichever is met first."""
_TIME: Final = "strftime(make_timestamp(epoch_us(timestamp)), '%Y-%m-%dT%H:%M:%S.%fZ')"
_NOT_DATA: Final = ("event_id", "conversation_id", "seq", "event_type", "timestamp", "ingested_at", "sample_rate", "metadata")
_DATA: Final = tuple(column.name for column in COLUMNS if column.name not in _NOT_DATA)


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    events: int
    bytes: int
    coverage: Coverage
    """Sampled rows are exported as they are; NDJSON has no sample_rate."""


class Exporter:
    """Writes events of one store."""

    def __init__(self, runner: Runner, namespace: str) -> None:
        self._runner = runner
        self._namespace = namespace

    def export(
        self,
        target: str | Path | BinaryIO,
        *,
        format: ExportFormat,
        conversation_id: str | None,
        since: dt.datetime | None,
        until: dt.datetime | None,
        event_types: Sequence[str] | None,
    ) -> Exported:
        """Write what was asked for; a file of that name is replaced at the end, or stays as it was when something fails."""
        if format not in FORMATS:
            raise QueryRefused(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
        for name, at in (("since", since), ("until", until)):
            if at is not None and (not isinstance(at, dt.datetime) or at.tzinfo is None):
                raise QueryRefused(f"{name} must be an aware datetime, not {at!r}")
        columns = ", ".join(COLUMN_NAMES) if format == "parquet" else f"{self._line(format)} AS line"
        condition, parameters = _condition(conversation_id, since, until, Patterns(event_types))
        query = f"SELECT {columns} FROM events WHERE {condition} ORDER BY conversation_id, seq"
        with self._runner.stream(query, parameters, rows=BATCH_ROWS) as (batches, coverage), _opened(target) as file:
            out = _Counted(file)
            events = _WRITERS[format](out, batches)
        return Exported(events=events, bytes=out.count, coverage=coverage)

    def _line(self, format: str) -> str:
        """SQL of one event as JSON, without a newline in it."""
        if format == "ndjson":
            parts = [_quoted_field("event_id", "event_id"), _quoted_field("conversation_id", "conversation_id")]
            parts += [_quoted_field("event_type", "event_type"), f"'\"timestamp\":\"' || {_TIME} || '\"'"]
            return f"'{{' || {_joined(parts)} || {_optional(_DATA)} || {_METADATA} || '}}'"
        parts = [
            '\'"specversion":"1.0"\'',
            _quoted_field("id", "event_id"),
            quoted(f'"source":"/thermocline/{self._namespace}"'),
            _quoted_field("type", "event_type"),
            _quoted_field("subject", "conversation_id"),
            f"'\"time\":\"' || {_TIME} || '\"'",
            '\'"datacontenttype":"application/json"\'',
            "'\"sequence\":\"' || seq || '\"'",
        ]
        rate = "CASE WHEN sample_rate < 1 THEN ',\"samplerate\":\"' || sample_rate || '\"' ELSE '' END"
        data = f"{_quoted_field('content', 'content')} || {_optional(name for name in _DATA if name != 'content')} || {_METADATA}"
        return f"'{{' || {_joined(parts)} || {rate} || ',\"data\":{{' || {data} || '}}}}'"


def _quoted_field(key: str, column: str) -> str:
    return f"'\"{key}\":' || to_json({column})::VARCHAR"


def _joined(parts: Iterable[str]) -> str:
    return " || ',' || ".join(parts)


def _optional(names: Iterable[str]) -> str:
    return " || ".join(f"CASE WHEN {name} IS NULL THEN '' ELSE ',\"{name}\":' || to_json({name})::VARCHAR END" for name in names)


_METADATA: Final = """CASE WHEN metadata IS NULL THEN ''
    WHEN prefix(metadata, '{') AND suffix(metadata, '}') AND NOT contains(metadata, chr(10)) AND NOT contains(metadata, chr(13))
    THEN ',"metadata":' || metadata ELSE ',"metadata":' || to_json(metadata)::VARCHAR END"""
"""The object as it is, or as text that holds it, where a line would not keep its bytes."""


def _condition(
    conversation_id: str | None, since: dt.datetime | None, until: dt.datetime | None, types: Patterns
) -> tuple[str, dict[str, Any]]:
    conditions, parameters = ["true"], {}
    for text, name, value in (
        ("conversation_id = $conversation", "conversation", conversation_id),
        ("timestamp >= $since", "since", since),
        ("timestamp < $until", "until", until),
    ):
        if value is not None:
            conditions.append(text)
            parameters[name] = value
    if types.patterns is not None:
        exact = [quoted(one) for one in types.patterns if "*" not in one]
        wild = types.expression
        if wild is None:
            conditions.append(f"event_type IN ({', '.join(exact)})")
        else:
            conditions.append(f"regexp_full_match(event_type, {quoted(wild)}, 's')")
    return " AND ".join(conditions), parameters


class _Counted:
    """A file that counts what is written to it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def flush(self) -> None:
        """The caller's file is the caller's to flush."""

    def close(self) -> None:
        """And to close."""

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.count += len(data)
        return len(data)


def _write_lines(out: _Counted, batches: Iterable[pa.RecordBatch]) -> int:
    events = 0
    for batch in batches:
        if batch.num_rows:
            out.write(("\n".join(batch.column(0).to_pylist()) + "\n").encode())
            events += batch.num_rows
    return events


def _write_array(out: _Counted, batches: Iterable[pa.RecordBatch]) -> int:
    events = 0
    out.write(b"[")
    for batch in batches:
        if batch.num_rows:
            out.write((("," if events else "") + "\n" + ",\n".join(batch.column(0).to_pylist())).encode())
            events += batch.num_rows
    out.write(b"\n]\n")
    return events


def _write_parquet(out: _Counted, batches: pa.RecordBatchReader) -> int:
    events, rows, size = 0, 0, 0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(pa.PythonFile(out, mode="w"), batches.schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(batch)
            events, rows, size = events + batch.num_rows, rows + batch.num_rows, size + batch.nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting, rows, size = [], 0, 0
        if rows:
            writer.write_table(pa.Table.from_batches(waiting))
    return events


_WRITERS: Final[dict[str, Callable[[_Counted, Any], int]]] = {
    "ndjson": _write_lines,
    "cloudevents": _write_lines,
    "cloudevents-batch": _write_array,
    "parquet": _write_parquet,
}


def _opened(target: str | Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(target, str | Path):
        return _whole(Path(target))
    return nullcontext(target)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    with file_errors(str(path), setting="the target"), whole_file(path.absolute()) as file:
        yield file
