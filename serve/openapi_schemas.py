"""The schemas of /openapi.json. Pure data."""

from __future__ import annotations

from typing import Any, Final

from thermocline.event import COLUMNS, EVENT_BYTES_MAX, NAME_BYTES_MAX

from .cloudevents import COLUMNS as CLOUD_COLUMNS

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, *required: str, more: bool = False) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": more}


TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
NAME: Final[Schema] = {"type": ["string", "null"], "maxLength": NAME_BYTES_MAX // 4, "pattern": "^[ -~]*$"}
_TYPES: Final = {"VARCHAR": TEXT, "BIGINT": {"type": "integer"}, "DOUBLE": {"type": "number"}, "TIMESTAMPTZ": TIME, "UUID": TEXT}

EVENT: Final = _object(
    {
        "conversation_id": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": '^[!-"$-~][ -~]*$'},
        "event_type": {"type": "string", "maxLength": NAME_BYTES_MAX, "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"},
        "content": {"type": ["string", "null"], "maxLength": EVENT_BYTES_MAX // 4},
        **dict.fromkeys(("task_id", "agent_id", "correlation_id", "parent_id", "model", "tool_name", "status"), NAME),
        "duration_ms": {"type": ["number", "null"]},
        "cost_usd": {"type": ["number", "null"]},
        "input_tokens": {"type": ["integer", "null"], "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
        "output_tokens": {"type": ["integer", "null"], "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
        "metadata": {"type": ["object", "null"], "description": "Kept byte for byte; a JSON object as text is taken too"},
        "timestamp": {
            "oneOf": [TIME, {"type": "integer", "minimum": 946_684_800_000_000}, {"type": "null"}],
            "description": "RFC 3339, or µs since 1970; absent: now",
        },
        "event_id": {"type": ["string", "null"], "format": "uuid", "description": "Yours: sent again, it is stored once"},
    },
    "conversation_id",
    "event_type",
)

STORED: Final = _object(
    {column.name: _TYPES.get(column.sql_type, {"type": "object"}) for column in COLUMNS},
    *(column.name for column in COLUMNS if not column.nullable),
)

OUTCOME: Final = _object(
    {
        "index": COUNT,
        "line": COUNT,
        "outcome": {"enum": ["stored", "refused", "not_stored", "unknown"]},
        "conversation_id": TEXT,
        "seq": {"type": "integer"},
        "event_id": TEXT,
        "durability": TEXT,
        "duplicate": {"type": "boolean"},
        "field": TEXT,
        "problem": TEXT,
        "retry_after_s": {"type": ["number", "null"]},
    },
    "index",
    "outcome",
)
COVERAGE: Final = _object(
    {"exact": {"type": "boolean"}, "reason": TEXT, "taken_at": TIME, "relations": {"type": "object"}},
    "exact",
    "taken_at",
    more=True,
)

SCHEMAS: Final[Schema] = {
    "Event": EVENT,
    "StoredEvent": STORED,
    "CloudEvent": _object(
        {
            "specversion": {"const": "1.0"},
            "id": {"type": "string", "minLength": 1},
            "source": {"type": "string", "minLength": 1},
            "type": EVENT["properties"]["event_type"],
            "subject": EVENT["properties"]["conversation_id"],
            "conversationid": EVENT["properties"]["conversation_id"],
            "time": TIME,
            "data": {},
            "data_base64": TEXT,
            "metadata": TEXT,
            **{name: EVENT["properties"][column] for name, column in CLOUD_COLUMNS.items()},
        },
        "specversion",
        "id",
        "source",
        "type",
        more=True,
    ),
    "Outcome": OUTCOME,
    "Outcomes": _object(
        {
            **dict.fromkeys(("stored", "refused", "not_stored", "unknown", "duplicates"), COUNT),
            "outcomes": {"type": "array", "items": ref("Outcome")},
        },
        "stored",
        "outcomes",
    ),
    "Page": _object(
        {
            "conversation_id": TEXT,
            "events": {"type": "array", "items": ref("StoredEvent")},
            "next": {"type": ["string", "null"]},
            "coverage": ref("Coverage"),
        },
        "conversation_id",
        "events",
        "next",
        "coverage",
    ),
    "Query": _object(
        {
            "sql": {"type": "string", "maxLength": 65_536},
            "params": {"type": ["array", "object", "null"], "description": "For ? and $1, or for $name"},
            "rows_max": {"type": ["integer", "null"], "minimum": 1, "maximum": 1 << 40},
            "deadline_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 86_400},
            "id": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_-]{1,64}$"},
            "complete": {"type": "boolean", "description": "409 rather than an answer from a sample"},
        },
        "sql",
    ),
    "Answer": _object(
        {
            "query_id": TEXT,
            "columns": {"type": "array", "items": _object({"name": TEXT, "type": TEXT}, "name", "type")},
            "rows": {"type": "array", "items": {"type": "object"}},
            "row_count": COUNT,
            "truncated": {"type": "boolean"},
            "coverage": ref("Coverage"),
        },
        "query_id",
        "columns",
        "rows",
        "row_count",
        "truncated",
        "coverage",
    ),
    "Coverage": COVERAGE,
    "Status": _object(
        {
            "namespace": TEXT,
            "health": {"enum": ["green", "yellow", "red"]},
            "reasons": {"type": "array", "items": TEXT},
            "tiers": {"type": "array", "items": {"type": "object"}},
        },
        "namespace",
        "health",
        "reasons",
        "tiers",
        more=True,
    ),
    "Alive": _object({"status": {"const": "ok"}}, "status"),
    "Ready": _object({"status": {"const": "ready"}, "health": TEXT}, "status"),
    "Document": {"type": "object"},
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri"},
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "retry_after_s": {"type": "number"},
            "field": TEXT,
            "outcomes": {"type": "array", "items": ref("Outcome")},
            "expected_seq": {"type": "integer"},
            "last_seq": {"type": "integer"},
        },
        "type",
        "title",
        "status",
        "detail",
    ),
}
