"""The columns of cold files, with the field ids that Parquet and Iceberg know them by (docs/formats.md). Pure data."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from thermocline.event import COLUMNS

_TIME: Final = pa.timestamp("us", tz="UTC")
_SUM: Final = pa.decimal128(38, 0)
_SQL: Final = {"UUID": pa.uuid(), "VARCHAR": pa.string(), "JSON": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}

_DUCKDB: Final = {
    str(pa.uuid()): "UUID",
    str(pa.string()): "VARCHAR",
    str(pa.int64()): "BIGINT",
    str(pa.int32()): "INTEGER",
    str(pa.float64()): "DOUBLE",
    str(_TIME): "TIMESTAMPTZ",
    str(_SUM): "DECIMAL(38,0)",
}

KINDS: Final = (
    "events",
    "rollup_hourly",
    "rollup_conversation",
    "rollup_task",
    "rollup_quantile",
    "rollup_decision",
    "rollup_user",
)
"""Kinds of files; each is an Iceberg table of the namespace."""
DATA_PREFIXES: Final = ("events/", "rollup_")
"""How keys of data files begin, whatever their kind: so few listings have all of them."""


def _field(name: str, kind: pa.DataType, field_id: int, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"PARQUET:field_id": str(field_id)})


def _numbered(*fields: tuple[str, pa.DataType], nullable: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema([_field(name, kind, place, nullable=name in nullable) for place, (name, kind) in enumerate(fields, start=1)])


SCHEMAS: Final[dict[str, pa.Schema]] = {
    "events": pa.schema(
        [_field(one.name, _SQL.get(one.sql_type, _TIME), one.field_id, nullable=one.nullable) for one in COLUMNS]
    ),
    "rollup_hourly": _numbered(
        ("hour", _TIME),
        ("conversation_id", pa.string()),
        ("event_type", pa.string()),
        ("agent_id", pa.string()),
        ("model", pa.string()),
        ("tool_name", pa.string()),
        ("events", pa.int64()),
        ("content_bytes", pa.int64()),
        ("input_tokens", _SUM),
        ("output_tokens", _SUM),
        ("cost_usd", pa.float64()),
        ("errors", pa.int64()),
        ("duration_ms_sum", pa.float64()),
        ("duration_count", pa.int64()),
        ("timestamp_min", _TIME),
        ("timestamp_max", _TIME),
        nullable=("agent_id", "model", "tool_name"),
    ),
    "rollup_conversation": _numbered(
        ("conversation_id", pa.string()),
        ("started_at", _TIME),
        ("ended_at", _TIME),
        ("events", pa.int64()),
        ("interventions", pa.int64()),
        ("errors", pa.int64()),
        ("seq_max", pa.int64()),
    ),
    "rollup_task": _numbered(("conversation_id", pa.string()), ("task_id", pa.string())),
    "rollup_quantile": _numbered(
        ("hour", _TIME), ("event_type", pa.string()), ("measure", pa.string()), ("bucket", pa.int32()), ("events", pa.int64())
    ),
    "rollup_decision": _numbered(
        ("conversation_id", pa.string()),
        ("rule", pa.string()),
        ("rate", pa.float64()),
        ("started_at", _TIME),
        ("policy_hash", pa.string()),
    ),
    "rollup_user": _numbered(
        ("rollup", pa.string()),
        ("definition", pa.string()),
        ("hour", _TIME),
        ("keys", pa.string()),
        ("partials", pa.string()),
        nullable=("keys",),
    ),
}
"""Kind → Arrow schema. Column order and field ids never change; new columns come at the end."""

SQL_TYPES: Final[dict[str, dict[str, str]]] = {
    kind: {field.name: _DUCKDB[str(field.type)] for field in schema} for kind, schema in SCHEMAS.items()
}
"""Kind → column → DuckDB type."""

SORT: Final[dict[str, tuple[str, ...]]] = {
    "events": ("conversation_id", "timestamp", "seq"),
    "rollup_hourly": ("conversation_id", "hour", "event_type", "agent_id", "model", "tool_name"),
    "rollup_conversation": ("conversation_id",),
    "rollup_task": ("conversation_id", "task_id"),
    "rollup_quantile": ("hour", "event_type", "measure", "bucket"),
    "rollup_decision": ("conversation_id", "rule", "policy_hash"),
    "rollup_user": ("hour", "rollup", "definition", "keys", "partials"),
}
"""Kind → the columns its files are sorted by; together unique within a file, or all columns."""
