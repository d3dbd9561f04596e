"""Events that stores stumble over, and what docs/formats.md says of each: which field is wrong, or which row it becomes.

Nothing here asks the product; tests of append, settle and the archive compare it with this.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from thermocline.event import Event

TEXT_COLUMNS = ("task_id", "agent_id", "correlation_id", "parent_id", "model", "tool_name", "status")
REAL_COLUMNS = ("duration_ms", "cost_usd")
INTEGER_COLUMNS = ("input_tokens", "output_tokens")
ODD_TEXTS = (
    "",
    "\x00",
    "a\x00b",
    "tail\x00",
    "\u2028\u2029\ufeff",
    '"\\/',
    "{",
    "null",
    '{"a":1}\n{"b":2}\n',
    "😀" * 20,
    "\uffff\ufffe",
    "\x7f\x85",
    '":"',
    "\r\n\t",
    "\b\f\v",
    "e\u0301 \u0645\u0631 \u202e",
)
ODD_REALS = (-0.0, 0.0, 5e-324, 1.7976931348623157e308, 1e22, 1e-7, 0.1 + 0.2)
ODD_INTEGERS = (-(2**63), 2**63 - 1, -1, 0, 2**53 + 1)

EVENT_BYTES = 1_048_576
METADATA_BYTES = 65_536
NAME_BYTES = 256
DEPTH = 64
FIRST_US = 946_684_800_000_000
LAST_US = 253_402_300_799_999_999
AHEAD_US = 300_000_000
"""The limits, as docs/formats.md has them."""

_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_UUID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:?\d\d)")


def faults(event: Mapping[str, Any], now_us: int) -> set[str]:
    """The fields an InvalidEvent may name; none when the event has to be stored.

    event   the fields given, those of Event or others
    now_us  Redis' clock
    """
    found = set(event) - set(Event.__struct_fields__)
    found |= {name for name in ("conversation_id", "event_type") if name not in event}
    checks = {
        "conversation_id": _is_conversation,
        "event_type": lambda value: isinstance(value, str) and len(value) <= NAME_BYTES and bool(_TYPE.fullmatch(value)),
        "content": lambda value: value is None or _is_text(value),
        "timestamp": lambda value: value is None or (timestamp_us(value) or 0) in range(FIRST_US, now_us + AHEAD_US + 1),
        "event_id": lambda value: value is None or isinstance(value, uuid.UUID) or _is_uuid(value),
        "metadata": lambda value: value is None or metadata_text(value, null_content=_null_content(event)) is not None,
        **dict.fromkeys(TEXT_COLUMNS, lambda value: value is None or _is_name(value)),
        **dict.fromkeys(REAL_COLUMNS, lambda value: value is None or _is_real(value)),
        **dict.fromkeys(INTEGER_COLUMNS, lambda value: value is None or (_is_integer(value) and -(2**63) <= value < 2**63)),
    }
    found |= {name for name, check in checks.items() if name in event and not check(event[name])}
    if not found and line_bytes(event) > EVENT_BYTES:
        found.add("content")
    return found


def row_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a good event has in every tier; timestamp in µs, left out when it is not given. Minus zero is
    zero; metadata that was given as a dict is a Tree."""
    row: dict[str, Any] = {name: event.get(name) for name in ("conversation_id", "event_type", *TEXT_COLUMNS, *INTEGER_COLUMNS)}
    row |= {name: None if event.get(name) is None else float(event[name]) + 0.0 for name in REAL_COLUMNS}
    row["content"] = event.get("content", "") or ""
    metadata = event.get("metadata")
    null_content = _null_content(event)
    row["metadata"] = None if metadata is None and not null_content else metadata_text(metadata, null_content=null_content)
    if isinstance(metadata, dict):
        row["metadata"] = Tree({"content": None, **metadata} if null_content and "content" not in metadata else metadata)
    if event.get("timestamp") is not None:
        row["timestamp"] = timestamp_us(event["timestamp"])
    if event.get("event_id") is not None:
        row["event_id"] = str(uuid.UUID(str(event["event_id"])))
    return row


class Tree:
    """Equal to every JSON text that says the same, to the sign of a zero and the order of members."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and repr(json.loads(other)) == repr(self._value)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"JSON of {self._value!r:.200}"


def unlike(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The columns of `found` that are not as wanted, to the bit."""
    return [
        f"{name}: {found[name]!r:.200}, not {value!r:.200}"
        for name, value in wanted.items()
        if not (value == found[name] and (isinstance(value, Tree) or repr(value) == repr(found[name])))
    ]


def metadata_text(given: Any, *, null_content: bool = False) -> str | None:
    """The text that is kept; None when this cannot be metadata.

    null_content  whether the event's content is null, which is kept in here
    """
    if isinstance(given, dict):
        try:
            text = json.dumps(given, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return None
        if not _has_text_keys(given):
            return None
    elif given is None:
        return '{"content":null}' if null_content else ""
    elif isinstance(given, str):
        text = given
    elif isinstance(given, bytes | bytearray | memoryview | msgspec.Raw):
        try:
            text = bytes(given).decode()
        except UnicodeDecodeError:
            return None
    else:
        return None
    tree = _parsed(text)
    if tree is None or len(text.encode(errors="surrogatepass")) > METADATA_BYTES:
        return None
    if null_content and "content" not in tree:
        start = text.index("{") + 1
        text = f'{text[:start]}"content":null{"," if tree else ""}{text[start:]}'
    return text if len(text.encode()) <= METADATA_BYTES else None


def _parsed(text: str) -> dict[str, Any] | None:
    """The object of a JSON text within all limits, else None."""

    def number(digits: str) -> int:
        if len(digits) > 25 or not -(2**63) <= int(digits) < 2**64:
            raise ValueError(digits)
        return int(digits)

    def real(digits: str) -> float:
        found = float(digits)
        if found in (float("inf"), float("-inf")):
            raise ValueError(digits)
        return found

    def constant(name: str) -> Any:
        raise ValueError(name)

    try:
        text.encode()
        tree = json.loads(text, parse_int=number, parse_float=real, parse_constant=constant)
        json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) and depth_of(tree) <= DEPTH else None


def depth_of(tree: Any) -> int:
    """How deep objects and arrays are nested; 1 for an object without any in it."""
    depth, level = 0, [tree]
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        level = [below for value in level for below in (value.values() if isinstance(value, dict) else value)]
    return depth


def line_bytes(event: Mapping[str, Any]) -> int:
    """The bytes of a good event's line, about, if it has numbers other than integers; else exactly."""
    row = {name: value for name, value in row_of(event).items() if value is not None and name != "conversation_id"}
    row.setdefault("timestamp", 1_780_000_000_000_000)
    if isinstance(row.get("metadata"), Tree):
        row["metadata"] = metadata_text(event["metadata"], null_content=_null_content(event))
    if not row["content"]:
        del row["content"]
    return len(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())


def timestamp_us(given: Any) -> int | None:
    """µs since the epoch; None when this is no timestamp."""
    if isinstance(given, bool):
        return None
    if isinstance(given, int):
        return int(given)
    if isinstance(given, str):
        if not _RFC3339.fullmatch(given):
            return None
        try:
            given = datetime.fromisoformat(given.upper())
        except ValueError:
            return None
    if not isinstance(given, datetime) or given.utcoffset() is None:
        return None
    return (given - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _null_content(event: Mapping[str, Any]) -> bool:
    return "content" in event and event["content"] is None


def _has_text_keys(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(isinstance(key, str) for key in tree) and all(_has_text_keys(value) for value in tree.values())
    return not isinstance(tree, list) or all(_has_text_keys(value) for value in tree)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_name(value: Any) -> bool:
    return _is_text(value) and len(value.encode()) <= NAME_BYTES and not re.search("[\x00-\x1f\x7f-\x9f]", value)


def _is_conversation(value: Any) -> bool:
    return _is_text(value) and 1 <= len(value.encode()) <= NAME_BYTES and value.isprintable() and value[0] != "#"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return abs(float(value)) <= 1.7976931348623157e308
    except OverflowError:
        return False


def _is_uuid(value: Any) -> bool:
    return isinstance(value, str) and bool(_UUID.fullmatch(value))
