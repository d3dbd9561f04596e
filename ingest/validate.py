"""Check one event against docs/formats.md, "Event". Pure: values in, values or InvalidEvent out.

Everything that settle could stumble over is refused here: what DuckDB reads differently (lone surrogates, numbers beyond
64 bits, `[1,]`, NaN) and what it would turn into NULL in silence (a wrong type).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import uuid_utils

from thermocline.errors import InvalidEvent
from thermocline.event import (
    COLUMNS,
    CONVERSATION_ID_BYTES_MAX,
    INT64_MAX,
    INT64_MIN,
    NAME_BYTES_MAX,
    TIMESTAMP_MIN_US,
    Event,
)

from .metadata import check_metadata, with_null_content
from .text import exact_text, quoted, shown, type_name, utf8_size

FIELDS: Final = tuple(column.name for column in COLUMNS if column.in_line)
"""Order of the values `checked` takes: an event without its conversation, as a plain tuple, which costs a tenth of an Event."""

TIMESTAMP_MAX_US: Final = 253_402_300_799_999_999
"""End of the year 9999, the last that every reader can show. Redis' clock is the real bound; only Redis knows it."""

Fields = tuple[Any, ...]

_values_of = attrgetter(*FIELDS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EVENT_TYPE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_UUID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RFC3339 = Annotated[datetime, msgspec.Meta(tz=True)]

_known_types: set[str] = set()
"""Event types seen to be good: a match costs five times the look-up."""
_KNOWN_TYPES_MAX = 4096


def fields_of(event: Event) -> Fields:
    """The event's values in the order of FIELDS."""
    values: Fields = _values_of(event)
    return values


def checked(fields: Fields, now_us: int) -> dict[str, Any]:
    """The event's line as an object: column name → value, in column order, what is absent left out.

    fields  in the order of FIELDS
    now_us  the timestamp of an event that has none, µs since the epoch
    """
    (event_id, event_type, timestamp, agent_id, task_id, correlation_id, parent_id, model, tool_name, status,
     duration_ms, cost_usd, input_tokens, output_tokens, content, metadata) = fields  # fmt: skip
    # Spelled out column by column: a loop over a table of checks takes half as long again, and this runs for every event.
    line: dict[str, Any] = {}
    if event_id is not None:
        line["event_id"] = _check_uuid("event_id", event_id)
    line["event_type"] = check_event_type("event_type", event_type)
    line["timestamp"] = now_us if timestamp is None else check_timestamp("timestamp", timestamp)
    if agent_id is not None:
        line["agent_id"] = _check_name("agent_id", agent_id)
    if task_id is not None:
        line["task_id"] = _check_name("task_id", task_id)
    if correlation_id is not None:
        line["correlation_id"] = _check_name("correlation_id", correlation_id)
    if parent_id is not None:
        line["parent_id"] = _check_name("parent_id", parent_id)
    if model is not None:
        line["model"] = _check_name("model", model)
    if tool_name is not None:
        line["tool_name"] = _check_name("tool_name", tool_name)
    if status is not None:
        line["status"] = _check_name("status", status)
    if duration_ms is not None:
        line["duration_ms"] = _check_real("duration_ms", duration_ms)
    if cost_usd is not None:
        line["cost_usd"] = _check_real("cost_usd", cost_usd)
    if input_tokens is not None:
        line["input_tokens"] = _check_integer("input_tokens", input_tokens)
    if output_tokens is not None:
        line["output_tokens"] = _check_integer("output_tokens", output_tokens)
    if type(content) is not str or content:
        text = "" if content is None else _check_content("content", content)
        if text:
            line["content"] = text
    if metadata is not None:
        line["metadata"] = check_metadata("metadata", metadata)
    if content is None:
        line["metadata"] = with_null_content(line.get("metadata"))
    return line


def check_conversation_id(value: object) -> str:
    """The id itself, or InvalidEvent."""
    if type(value) is str and 0 < len(value) <= 64 and value.isprintable() and value[0] != "#":
        return value
    field = "conversation_id"
    text = exact_text(field, value)
    size = utf8_size(field, text)
    if not size:
        raise InvalidEvent(field, f"is empty: give the conversation a name of 1 to {CONVERSATION_ID_BYTES_MAX} bytes")
    if size > CONVERSATION_ID_BYTES_MAX:
        raise InvalidEvent(field, f"has {size} bytes, allowed are 1 to {CONVERSATION_ID_BYTES_MAX}: shorten it, or use its hash")
    if text[0] == "#":
        raise InvalidEvent(field, "starts with '#', which is reserved: use another first character")
    if not text.isprintable():
        bad = next(character for character in text if not character.isprintable())
        raise InvalidEvent(field, f"holds {shown(bad)}, and every character must be printable: remove or replace it")
    return text


def check_expected_seq(value: object) -> int:
    """The number itself, or InvalidEvent."""
    seq = _check_integer("expected_seq", value)
    if seq < 0:
        raise InvalidEvent("expected_seq", f"is {seq}: give the conversation's last seq, or 0 when it must be new")
    return seq


def event_of(item: Event | Mapping[str, Any]) -> Event:
    """The event that a mapping describes; an Event as it is. InvalidEvent for keys that are not of an event."""
    if type(item) is Event:
        return item
    if not isinstance(item, Mapping):
        raise InvalidEvent("event", f"must be an Event or a mapping, not {type_name(item)}")
    for name in item:
        if name not in _EVENT_FIELDS:
            raise InvalidEvent(str(name), "is not a field of an event: put what has no column into metadata")
    for name in ("conversation_id", "event_type"):
        if name not in item:
            raise InvalidEvent(name, "is missing")
    return Event(**item)


def _check_name(field: str, value: Any) -> str:
    if type(value) is str and len(value) <= 64 and value.isprintable():
        return value
    text = exact_text(field, value)
    size = utf8_size(field, text)
    if size > NAME_BYTES_MAX:
        raise InvalidEvent(field, f"has {size} bytes, at most {NAME_BYTES_MAX}: put long text into content or metadata")
    control = _CONTROL.search(text)
    if control:
        raise InvalidEvent(field, f"holds the control character {shown(control[0])}: remove it")
    return text


def check_event_type(field: str, value: Any) -> str:
    if type(value) is str and value in _known_types:
        return value
    if value is None:
        raise InvalidEvent(field, "is missing: give a dotted name such as output.chunk")
    text = exact_text(field, value)
    if not 1 <= len(text) <= NAME_BYTES_MAX or not _EVENT_TYPE.fullmatch(text):
        rule = f"a dotted name of 1 to {NAME_BYTES_MAX} bytes, letters, digits, '_' and '-' between the dots"
        raise InvalidEvent(field, f"is {quoted(text)}, and must be {rule}, such as tool.call")
    if len(_known_types) < _KNOWN_TYPES_MAX:
        _known_types.add(text)
    return text


def _check_real(field: str, value: Any) -> float:
    if type(value) is float:
        real: float = value
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidEvent(field, f"must be a number, not {type_name(value)}: convert it with float()")
    else:
        try:
            real = float(value)
        except OverflowError as exc:
            raise InvalidEvent(field, "is beyond the largest float") from exc
    if not math.isfinite(real):
        raise InvalidEvent(field, f"is {real}, and must be finite: leave it out when it is not known")
    return real + 0.0  # -0.0 becomes 0.0: a DuckDB file that holds both keeps the one it met first


def _check_integer(field: str, value: Any) -> int:
    if type(value) is int:
        integer: int = value
    elif isinstance(value, bool) or not isinstance(value, int):
        raise InvalidEvent(field, f"must be an integer, not {type_name(value)}: convert it with int()")
    else:
        integer = int(value)
    if not INT64_MIN <= integer <= INT64_MAX:
        raise InvalidEvent(field, "must be within 64 bits")
    return integer


def _check_content(field: str, value: Any) -> str:
    if type(value) is str and value.isascii():
        return value
    text = exact_text(field, value)
    utf8_size(field, text)
    return text


def check_timestamp(field: str, value: Any) -> int:
    if type(value) is int:
        us = value
    elif isinstance(value, datetime):
        us = _datetime_us(field, value)
    elif isinstance(value, str):
        try:
            us = _datetime_us(field, msgspec.convert(str.__str__(value), _RFC3339))
        except (msgspec.ValidationError, UnicodeEncodeError) as exc:
            problem = f"is {quoted(value)}, and must be RFC 3339 with an offset, such as 2026-11-13T09:30:00.25Z"
            raise InvalidEvent(field, problem) from exc
    elif isinstance(value, int) and not isinstance(value, bool):
        us = int(value)
    else:
        kinds = "an aware datetime, integer µs since the epoch, or RFC 3339 text"
        raise InvalidEvent(field, f"must be {kinds}, not {type_name(value)}")
    if us < TIMESTAMP_MIN_US:
        raise InvalidEvent(field, f"is {us} µs, before 2000-01-01: give µs since the epoch, not seconds or milliseconds")
    if us > TIMESTAMP_MAX_US:
        raise InvalidEvent(field, f"is {us} µs, after the year 9999: give µs since the epoch, not nanoseconds")
    return us


def _datetime_us(field: str, value: datetime) -> int:
    if value.tzinfo is None or value.utcoffset() is None:
        fix = "give it its time zone, for example datetime.now(timezone.utc) or value.replace(tzinfo=…)"
        raise InvalidEvent(field, f"is a datetime without time zone: {fix}")
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _check_uuid(field: str, value: Any) -> str:
    if isinstance(value, (UUID, uuid_utils.UUID)):
        return str(value)
    if not isinstance(value, str):
        raise InvalidEvent(field, f"must be a UUID, not {type_name(value)}")
    if not _UUID.fullmatch(value):
        raise InvalidEvent(field, f"is {quoted(value)}, and must be a UUID such as 01a1fb68-3a43-7654-b3c4-4b98cde469b0")
    digits = value.replace("-", "").lower()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_EVENT_FIELDS = frozenset(Event.__struct_fields__)
