"""Check an event's metadata and give the JSON text to keep: the bytes given, or a dict as orjson writes it. Pure.

DuckDB accepts `[1,]`, NaN and 1e999, msgspec.Raw accepts anything, and one lone surrogate aborts a whole settle, so the text is
parsed in full here, once.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Final

import msgspec
import orjson

from thermocline.errors import InvalidEvent
from thermocline.event import INT64_MIN, JSON_DEPTH_MAX, METADATA_BYTES_MAX

from .text import json_problem, type_name, utf8_size

UINT64_MAX: Final = (1 << 64) - 1
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
"""Digits that may be beyond 64 bits, once all digits are zeros: a pattern takes eight times as long to find as this."""
_PLAIN = frozenset((float, bool, type(None)))
_decode = msgspec.json.Decoder().decode
_CONTENT_NULL = '"content":null'


def check_metadata(field: str, value: Any) -> str:
    """The JSON text to keep: the given bytes, or a dict as orjson writes it."""
    if isinstance(value, str):
        utf8_size(field, value)
        raw = value.encode()
    elif isinstance(value, dict):
        raw = _dumped(field, value)
    elif isinstance(value, bytes | bytearray | memoryview | msgspec.Raw):
        raw = bytes(value)
    else:
        raise InvalidEvent(field, f"must be a dict, or a JSON object as text or bytes, not {type_name(value)}")
    if len(raw) > METADATA_BYTES_MAX:
        raise InvalidEvent(field, f"has {len(raw):,} bytes, at most {METADATA_BYTES_MAX:,}: put long text into content")
    if isinstance(value, dict):
        if raw.count(b"{") + raw.count(b"[") > JSON_DEPTH_MAX:
            _check_tree(field, msgspec.json.decode(raw))
    else:
        _parse_object(field, raw)
    return value if type(value) is str else raw.decode()


def _dumped(field: str, value: dict[str, Any]) -> bytes:
    try:
        raw = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS)
        if b"null" in raw:  # orjson writes NaN and the infinities as null
            json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidEvent(field, f"cannot be stored as JSON: {_lowered(exc)}") from exc
    return raw


def _plain(value: object) -> object:
    """What json should look at in place of a value that only orjson knows."""
    return value.value if isinstance(value, Enum) else None


def _parse_object(field: str, raw: bytes) -> dict[str, Any]:
    try:
        tree = _decode(raw)
    except RecursionError as exc:
        raise InvalidEvent(field, f"is nested deeper than {JSON_DEPTH_MAX}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidEvent(field, f"is not valid JSON: {json_problem(raw, exc)}") from exc
    if not isinstance(tree, dict):
        raise InvalidEvent(field, f"must be a JSON object, not {_json_kind(tree)}")
    if not _is_flat(tree) and (raw.count(b"{") + raw.count(b"[") > JSON_DEPTH_MAX or _LONG_NUMBER in raw.translate(_ZEROS)):
        _check_tree(field, tree)
    return tree


def _is_flat(tree: dict[str, Any]) -> bool:
    """Whether it has plain values only, and no integer beyond 64 bits: most metadata, and nothing more is to be seen of it."""
    for value in tree.values():
        kind = type(value)
        if kind is not str and kind not in _PLAIN and not (kind is int and INT64_MIN <= value <= UINT64_MAX):
            return False
    return True


def _check_tree(field: str, tree: Any) -> None:
    level, depth = [tree], 0
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, int) and not INT64_MIN <= value <= UINT64_MAX:
                raise InvalidEvent(field, "holds an integer beyond 64 bits: give it as text")
        depth += any(isinstance(value, dict | list) for value in level)
        level = below
    if depth > JSON_DEPTH_MAX:
        raise InvalidEvent(field, f"is nested {depth} deep, at most {JSON_DEPTH_MAX}: flatten it, or give the inner part as text")


def with_null_content(metadata: str | None) -> str:
    """The metadata with a leading member that says the content was null, the given bytes following."""
    if metadata is None:
        return "{" + _CONTENT_NULL + "}"
    members = msgspec.json.decode(metadata)
    if "content" in members:
        return metadata
    start = metadata.index("{") + 1
    text = metadata[:start] + _CONTENT_NULL + ("," if members else "") + metadata[start:]
    if len(text.encode()) > METADATA_BYTES_MAX:
        limit = f"{METADATA_BYTES_MAX - len(_CONTENT_NULL) - 1:,} bytes when content is null"
        raise InvalidEvent("metadata", f"may have at most {limit}, which is kept in it: give content as ''")
    return text


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")


def _lowered(exc: Exception) -> str:
    text = str(exc)
    return text[:1].lower() + text[1:]
