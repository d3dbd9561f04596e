"""One event as the line of JSON it is stored as: checked, encoded, measured (docs/formats.md, "Block"). Pure.

Most events are plain: text, numbers and None where they belong, nothing unusual in them. `line_of` sees that in a few steps that
cost a third of `checked`, which judges all others, and alone says what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import copysign, isfinite
from types import NoneType
from typing import Any, Final

import msgspec

from thermocline.errors import InvalidEvent
from thermocline.event import COLUMNS, EVENT_BYTES_MAX, INT64_MAX, INT64_MIN, NAME_BYTES_MAX, NULLABLE_COLUMNS

from .metadata import check_metadata
from .validate import FIELDS, Fields, check_event_type, check_timestamp, checked


class Line(msgspec.Struct, frozen=True, gc=False):
    """One event, checked and encoded: all that is left of it between append and Redis."""

    payload: bytes
    timestamp_us: int
    content_bytes: int
    metadata_bytes: int
    nulls: int
    """Bit i is set when NULLABLE_COLUMNS[i] is NULL."""
    event_id: str | None


_encode = msgspec.json.Encoder().encode
"""Not orjson's: it cuts its bytes from a larger piece, which for bytes that somebody keeps takes three times as long."""
_DEFAULTS = [(name, Any, "" if name == "content" else None) for name in FIELDS]
_Object: Any = msgspec.defstruct("_Object", _DEFAULTS, omit_defaults=True, gc=False)
"""A line before it is encoded; what is absent is left out."""
_PYTHON_TYPES: Final = {"VARCHAR": str, "BIGINT": int, "DOUBLE": float}
_TYPES: Final = tuple(_PYTHON_TYPES[column.line_type] for column in COLUMNS if column.in_line)
_REQUIRED: Final = ("event_type", "timestamp", "content")
_SHAPES_MAX: Final = 4096
_KNOWN_NAMES_MAX: Final = 16_384
_UNUSUAL: Final = -1

_shapes: dict[tuple[type, ...], int] = {}
"""Types of an event's values → `nulls` of its line, or _UNUSUAL; of as many as are met at first."""
_known_names: set[str] = set()
"""Names seen to be plain: most come again and again."""
_nulls_of: dict[tuple[str, ...], int] = {}
"""Keys of a line → `nulls`; bounded by the columns' combinations."""


def line_of(fields: Fields, now_us: int) -> Line:
    """The line of an event given as values in the order of validate.FIELDS; InvalidEvent when it breaks a rule.

    now_us  the timestamp of an event that has none, µs since the epoch
    """
    return _plain_line(fields, now_us) or encoded(checked(fields, now_us))


def _plain_line(fields: Fields, now_us: int) -> Line | None:
    """The line of a plain event, the same that `checked` and `encoded` make; None when the event needs a closer look."""
    (event_id, event_type, timestamp, agent_id, task_id, correlation_id, parent_id, model, tool_name, status,
     duration_ms, cost_usd, input_tokens, output_tokens, content, metadata) = fields  # fmt: skip
    timestamp = now_us if timestamp is None else check_timestamp("timestamp", timestamp)
    if metadata is not None:
        metadata = check_metadata("metadata", metadata)
    values = (event_id, event_type, timestamp, agent_id, task_id, correlation_id, parent_id, model, tool_name, status,
              duration_ms, cost_usd, input_tokens, output_tokens, content, metadata)  # fmt: skip
    shape = tuple(map(type, values))
    nulls = _shapes.get(shape)
    if nulls is None:
        nulls = _nulls_of_shape(shape)
    if nulls < 0:
        return None
    for name in (agent_id, task_id, correlation_id, parent_id, model, tool_name, status):
        if name is not None and name not in _known_names and not _is_plain(name):
            return None
    if input_tokens is not None and not INT64_MIN <= input_tokens <= INT64_MAX:
        return None
    if output_tokens is not None and not INT64_MIN <= output_tokens <= INT64_MAX:
        return None
    if duration_ms is not None and (not isfinite(duration_ms) or (not duration_ms and copysign(1, duration_ms) < 0)):
        return None
    if cost_usd is not None and (not isfinite(cost_usd) or (not cost_usd and copysign(1, cost_usd) < 0)):
        return None
    check_event_type("event_type", event_type)
    try:
        payload = _encode(_Object(*values))
    except UnicodeEncodeError:
        return None
    if len(payload) > EVENT_BYTES_MAX:
        return None
    return Line(payload, timestamp, _utf8_bytes(content), _utf8_bytes(metadata), nulls, None)


def _is_plain(name: str) -> bool:
    if not (len(name) <= NAME_BYTES_MAX and name.isascii() and name.isprintable()):
        return False
    if len(_known_names) >= _KNOWN_NAMES_MAX:
        _known_names.clear()
    _known_names.add(name)
    return True


def _nulls_of_shape(shape: tuple[type, ...]) -> int:
    """What `_shapes` is to say of it. An id of the caller's makes an event unusual: it has to be brought into one form."""
    nulls = 0
    for name, wanted, given in zip(FIELDS, _TYPES, shape, strict=True):
        if (name == "event_id" and given is not NoneType) or (
            given is not wanted and (given is not NoneType or name in _REQUIRED)
        ):
            nulls = _UNUSUAL
            break
        if given is NoneType and name in NULLABLE_COLUMNS:
            nulls |= 1 << NULLABLE_COLUMNS.index(name)
    if len(_shapes) < _SHAPES_MAX:
        _shapes[shape] = nulls
    return nulls


def encoded(values: Mapping[str, Any]) -> Line:
    """The line of values that `checked` gave; InvalidEvent when it is too long."""
    payload = _encode(values)
    if len(payload) > EVENT_BYTES_MAX:
        problem = f"makes the event {len(payload):,} bytes as JSON, at most {EVENT_BYTES_MAX:,}: split it over several events"
        raise InvalidEvent("content", problem)
    names = tuple(values)
    nulls = _nulls_of.get(names)
    if nulls is None:
        nulls = _nulls_of[names] = sum(1 << bit for bit, name in enumerate(NULLABLE_COLUMNS) if name not in values)
    sizes = _utf8_bytes(values.get("content")), _utf8_bytes(values.get("metadata"))
    return Line(payload, values["timestamp"], *sizes, nulls, values.get("event_id"))


def _utf8_bytes(text: str | None) -> int:
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode())
