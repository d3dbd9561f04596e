"""Events from NDJSON: one JSON object a line, its keys the fields of Event, `metadata` kept byte for byte. Pure."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec
import orjson

from thermocline.errors import InvalidEvent
from thermocline.event import EVENT_BYTES_MAX, Event

LINE_BYTES_MAX: Final = 6 * EVENT_BYTES_MAX + (64 << 10)
"""A longer line cannot be an event, whatever its escapes: six bytes, as \\u00e9, say at least one of an event's."""

_ABSENT: Final = msgspec.Raw()


class _Line(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Event's fields, unchecked: append checks them, and names what is wrong the same way for every caller."""

    conversation_id: Any
    event_type: Any
    content: Any = ""
    task_id: Any = None
    agent_id: Any = None
    correlation_id: Any = None
    parent_id: Any = None
    model: Any = None
    tool_name: Any = None
    status: Any = None
    duration_ms: Any = None
    cost_usd: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    metadata: msgspec.Raw = _ABSENT
    timestamp: Any = None
    event_id: Any = None


_decoder: Final = msgspec.json.Decoder(_Line)
_text: Final = msgspec.json.Decoder(str)
_NAMES: Final = _Line.__struct_fields__
_values_of: Final = attrgetter(*_NAMES)


def parse_line(line: bytes) -> Event:
    """The event of one line, its values not yet checked. InvalidEvent: it is no JSON object with an event's fields."""
    if len(line) > LINE_BYTES_MAX:
        raise InvalidEvent("line", f"is longer than {LINE_BYTES_MAX:,} bytes: an event may have {EVENT_BYTES_MAX:,}")
    try:
        values = dict(zip(_NAMES, _values_of(_decoder.decode(line)), strict=True))
        values["metadata"] = _metadata(values["metadata"])
        return Event(**values)
    except msgspec.ValidationError as exc:
        raise InvalidEvent("line", f"is not an event: {_lowered(str(exc))}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidEvent("line", f"is not valid JSON: {_lowered(_problem(line, exc))}") from exc


def _metadata(raw: msgspec.Raw) -> msgspec.Raw | str | None:
    """The object's bytes; text that holds an object, as text; None when it is absent or null."""
    given = bytes(raw)
    if given in (b"", b"null"):
        return None
    return _text.decode(given) if given.startswith(b'"') else raw


def _problem(line: bytes, exc: Exception) -> str:
    """orjson's words, which say where, if it refuses the line too."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as better:
        return str(better)
    return str(exc)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
