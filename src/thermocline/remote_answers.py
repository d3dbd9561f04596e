"""What a server answers, as the library's values and errors. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import msgspec
import orjson

from thermocline.errors import (
    Backpressure,
    ConfigError,
    IncompleteAnswer,
    InvalidEvent,
    QueryRefused,
    SequenceConflict,
    StoreReplaced,
    ThermoclineError,
    TierCorrupt,
    TierUnavailable,
)
from thermocline.event import COLUMN_NAMES, Event, Receipt
from thermocline.query.coverage import Coverage

KIND: Final = "urn:thermocline:problem:"
_TIMES: Final = ("timestamp", "ingested_at")
_raw: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def coverage_of(told: dict[str, Any]) -> Coverage:
    """The coverage that a server tells as Coverage.as_dict does; what is worked out from the ledger stays with the server."""
    columns = [(one["name"], one["label"]) for one in told["columns"]]
    return msgspec.convert({**told, "columns": columns}, Coverage, strict=False)


def error_of(status: int, body: bytes, *, conversation_id: str = "") -> ThermoclineError:
    """The error that a problem document is."""
    try:
        found: dict[str, Any] = orjson.loads(body)
        kind, detail = str(found["type"]).removeprefix(KIND), str(found["detail"])
    except (ValueError, KeyError, TypeError):
        found, kind, detail = {}, "", f"the server answers {status}: is the address that of `thermocline serve`?"
    if kind in ("backpressure", "too-busy", "too-many-requests"):
        return Backpressure(detail.partition("; retry after")[0], retry_after_s=float(found.get("retry_after_s") or 1))
    if kind == "sequence-conflict":
        return SequenceConflict(conversation_id, expected_seq=found["expected_seq"], last_seq=found["last_seq"])
    if kind == "invalid-event":
        return InvalidEvent(str(found.get("field")), detail.removeprefix(f"{found.get('field')}: "))
    plain: dict[str, type[ThermoclineError]] = {
        "query-refused": QueryRefused,
        "query-cancelled": QueryRefused,
        "query-id-in-use": QueryRefused,
        "incomplete-answer": IncompleteAnswer,
        "store-replaced": StoreReplaced,
        "corrupt": TierCorrupt,
        "misconfigured": ConfigError,
        "not-authenticated": ConfigError,
        "not-allowed": ConfigError,
        "unknown-host": ConfigError,
    }
    if kind in plain:
        return plain[kind](detail)
    return TierUnavailable(detail) if status >= 500 else ThermoclineError(detail)


def receipt_of(outcome: dict[str, Any]) -> Receipt:
    """The receipt of an event that is stored."""
    return msgspec.convert({name: outcome[name] for name in Receipt.__struct_fields__}, Receipt)


def line_of(event: Event) -> bytes:
    """The event as a line of NDJSON, its metadata byte for byte, as text."""
    fields = {name: getattr(event, name) for name in Event.__struct_fields__}
    given = {name: value for name, value in fields.items() if value is not None or name == "content"}
    metadata = given.get("metadata")
    if isinstance(metadata, bytes | bytearray | memoryview | msgspec.Raw):
        given["metadata"] = bytes(metadata).decode()
    return orjson.dumps(given, default=str)


def event_of(data: bytes | str) -> dict[str, Any]:
    """An event of a tail or a page: columns as in `events`, values plain Python, metadata as text."""
    found: dict[str, Any] = dict.fromkeys(COLUMN_NAMES)
    for name, raw in _raw.decode(data).items():
        if name == "metadata":
            found[name] = bytes(raw).decode()
        else:
            value = msgspec.json.decode(raw)
            found[name] = dt.datetime.fromisoformat(value) if name in _TIMES else value
    return found
