"""Rows as bytes: events as JSON objects, answers as Arrow, Parquet, CSV, JSON, NDJSON, into a file."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from thermocline.query.column_names import told_apart

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
ARROW: Final = "application/vnd.apache.arrow.stream"
PARQUET: Final = "application/vnd.apache.parquet"
FORMS: Final = (JSON, ARROW, NDJSON, CSV, PARQUET)
"""Media types of an answer; the first when the client does not mind."""

_OPTIONS: Final = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
_ROWS_AT_ONCE: Final = 2_000
_CSV_PLAIN: Final = (
    pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string,
    pa.types.is_date, pa.types.is_decimal, pa.types.is_null, pa.types.is_string_view,
)  # fmt: skip


def dumped(value: object) -> bytes:
    """JSON, whatever DuckDB gave: times as RFC 3339, decimals as numbers, what is not finite as null, bytes as text."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS)


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return orjson.Fragment(format(value, "f")) if value.is_finite() else None
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, dt.timedelta):
        return str(value)
    months, days, nanoseconds = (getattr(value, name, None) for name in ("months", "days", "nanoseconds"))
    if isinstance(months, int) and isinstance(days, int) and isinstance(nanoseconds, int):
        return f"{months} months {days} days {nanoseconds / 1e9:g} s"
    return str(value)


def event_objects(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """One JSON object per row of `events`, on one line: what is NULL left out, metadata as the object it is, byte for byte
    but for line breaks between its members."""
    for row in rows:
        event = {name: value for name, value in row.items() if value is not None}
        if "metadata" in event:
            event["metadata"] = orjson.Fragment(event["metadata"].replace("\r", " ").replace("\n", " "))
        yield dumped(event)


def columns_of(schema: pa.Schema) -> list[dict[str, str]]:
    """Names and Arrow types of the columns."""
    return [{"name": name, "type": str(field.type)} for name, field in zip(told_apart(schema.names), schema, strict=True)]


def write_arrow(out: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch], notes: Mapping[str, bytes]) -> int:
    """Write an Arrow IPC stream; rows. notes: into the metadata of its schema."""
    noted = schema.with_metadata({**(schema.metadata or {}), **notes})
    count = 0
    with pa.ipc.new_stream(out, noted) as stream:
        for batch in batches:
            count += batch.num_rows
            stream.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=noted))
    return count


def write_parquet(out: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch], notes: Mapping[str, bytes]) -> int:
    """Write a Parquet file; rows."""
    noted = pa.schema(
        [field.with_name(name) for name, field in zip(told_apart(schema.names), schema, strict=True)],
        metadata={**(schema.metadata or {}), **notes},
    )
    count = 0
    with pq.ParquetWriter(out, noted, compression="zstd") as file:
        for batch in batches:
            count += batch.num_rows
            file.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=noted))
    return count


def write_csv(out: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write CSV with a head line; rows. Times as RFC 3339; lists and structs as JSON; NULL is empty, '' is \"\"."""
    texts = [not any(plain(field.type) for plain in _CSV_PLAIN) for field in schema]
    fields = [
        pa.field(name, pa.string() if text else field.type)
        for name, field, text in zip(told_apart(schema.names), schema, texts, strict=True)
    ]
    count = 0
    with pa_csv.CSVWriter(out, pa.schema(fields)) as file:
        for batch in batches:
            count += batch.num_rows
            columns = [_csv_text(column) if text else column for column, text in zip(batch.columns, texts, strict=True)]
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))
    return count


def _csv_text(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        zone = "Z" if column.type.tz is not None else ""
        at = pc.local_timestamp(column) if column.type.tz not in (None, "UTC") else column
        return pc.strftime(at.cast(pa.timestamp("us", column.type.tz)), format=f"%Y-%m-%dT%H:%M:%S{zone}")
    return pa.array([_text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str | None:
    if value is None:
        return None
    found = value if isinstance(value, dict | list) else _plain(value)
    return found if isinstance(found, str) else dumped(found).decode()


def write_ndjson(out: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write one JSON object a line; rows."""
    count = 0
    for row in _rows(schema, batches):
        out.write(dumped(row) + b"\n")
        count += 1
    return count


def write_json_rows(out: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write the inside of a JSON array of objects; rows."""
    count = 0
    for row in _rows(schema, batches):
        out.write((b",\n" if count else b"\n") + dumped(row))
        count += 1
    return count


def _rows(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    names = told_apart(schema.names)
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            part = batch.slice(start, _ROWS_AT_ONCE)
            columns = [_readable(column).to_pylist() for column in part.columns]
            for values in zip(*columns, strict=True):
                yield dict(zip(names, values, strict=True))


def _readable(column: pa.Array) -> pa.Array:
    """Timestamps of nanoseconds as microseconds, which Python has."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)
    return column
