"""Rows of a few blocks, decoded in Python: where planning the SQL of `parse_blocks` would cost more than its work. Pure.

Only lines exactly as our own encoder writes them are taken. Of anything else, be it one line, the answer is None and
`parse_blocks` judges, so that there is one rule for what an event is.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from thermocline.event import COLUMNS, NULLABLE_COLUMNS, TIMESTAMP_MIN_US
from thermocline.tiers.block import derived_event_id
from thermocline.tiers.hot import BlockLists

LINES_MAX: Final = 500
"""From about here on SQL is faster."""
TIMESTAMP_MAX_US: Final = 253_402_300_799_999_999
_TIME: Final = pa.timestamp("us", tz="UTC")
_ARROW: Final = {
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "TIMESTAMPTZ": _TIME,
}
SCHEMA: Final = pa.schema([(column.name, _ARROW.get(column.sql_type, pa.string())) for column in COLUMNS])
"""The columns of `events` as a query gives them."""
PLACES: Final = pa.schema([("shard", pa.int32()), ("position_ms", pa.int64()), ("position_seq", pa.int64())])
WITH_PLACES: Final = pa.schema([*SCHEMA, *PLACES])

_PYTHON: Final = {"VARCHAR": str, "BIGINT": int, "DOUBLE": float}
_FIELDS: Final = tuple(column.name for column in COLUMNS if column.in_line)
"""The keys of a line, in the order they are written in."""
_DEFAULTS: Final[dict[str, tuple[Any, ...]]] = {"event_type": (), "timestamp": (), "content": ("",)}
_TYPES: Final = {column.name: _PYTHON[column.line_type] for column in COLUMNS if column.in_line}
_Line: Any = msgspec.defstruct(
    "_Line",
    [(name, _TYPES[name], *_DEFAULTS[name]) if name in _DEFAULTS else (name, _TYPES[name] | None, None) for name in _FIELDS],
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
)
_EVENT_ID, _TYPE, _TIMESTAMP = (_FIELDS.index(name) for name in ("event_id", "event_type", "timestamp"))
_CONTENT, _METADATA = _FIELDS.index("content"), _FIELDS.index("metadata")
_OF_BLOCK: Final = {"conversation_id": "conversation_id", "ingested_at": "ingested_us"} | {name: name for name in PLACES.names}
"""Columns that all events of a block share, and their names in hot.BLOCKS_SCHEMA."""
_OF_IDS: Final = ("payload", "block_id", "events", "skip")
_NULLABLE: Final = [_FIELDS.index(name) for name in NULLABLE_COLUMNS]
_decode: Any = msgspec.json.Decoder(_Line).decode
_encode: Any = msgspec.json.Encoder().encode


def few(blocks: pa.Table) -> bool:
    """Whether decoding here is the faster way."""
    return blocks.num_rows == 0 or int(pc.sum(blocks.column("events")).as_py()) <= LINES_MAX


def decoded(blocks: BlockLists, schema: pa.Schema = WITH_PLACES) -> pa.Table | None:
    """The rows of `blocks`, in log order. None when a line is not as we write it.

    schema  WITH_PLACES, or the columns of it that are wanted
    """
    if not blocks["payload"]:
        return schema.empty_table()
    try:
        columns = _columns(blocks) if blocks["fault"].count(None) == len(blocks["fault"]) else None
        arrays = None if columns is None else [_array(columns[field.name], field.type) for field in schema]
    except (ValueError, OverflowError, msgspec.MsgspecError):
        return None
    return None if arrays is None else pa.Table.from_arrays(arrays, schema=schema)


def _columns(blocks: BlockLists) -> dict[str, Sequence[Any]] | None:
    """Values by column, of every event that is not skipped; None when something about a block is odd."""
    by_line = _parsed("\n".join(blocks["payload"]).encode())
    if by_line is None or not _fit(by_line) or _sizes(by_line) != list(map(sum, zip(*blocks["sizes"], strict=True))):
        return None
    kept = _kept(blocks, by_line[_EVENT_ID])
    if kept is None:
        return None
    lines, event_ids = kept
    if len(lines) < len(by_line[0]):
        by_line = [[values[line] for line in lines] for values in by_line]
    columns = dict(zip(_FIELDS, by_line, strict=True))
    events = blocks["events"]
    for name, given in _OF_BLOCK.items():
        columns[name] = [value for value, count in zip(blocks[given], events, strict=True) for _ in range(count)]
    columns["seq"] = [first + place for first, count in zip(blocks["seq_first"], events, strict=True) for place in range(count)]
    columns["sample_rate"] = [1.0] * len(lines)
    columns["event_id"] = event_ids
    return columns


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if values.count(None) == len(values):
        return pa.nulls(len(values), kind)
    return pa.array(values, kind)


def _parsed(text: bytes) -> list[Sequence[Any]] | None:
    """The values of lines by field; None when a line is not as we write it: keys twice, blanks, numbers in other forms."""
    lines = text.split(b"\n")
    parsed = list(map(_decode, lines))
    if b"\\u0000" in text:
        return None
    if b"\n".join(map(_encode, parsed)) != text and not all(orjson.dumps(orjson.loads(line)) == line for line in lines):
        return None
    return list(zip(*map(msgspec.structs.astuple, parsed), strict=True))


def _kept(blocks: BlockLists, given_ids: Sequence[str | None]) -> tuple[list[int], list[str]] | None:
    """(lines that are not skipped, their event ids); None when a block has more or fewer lines than it says."""
    lines: list[int] = []
    event_ids: list[str] = []
    line = 0
    for payload, block_id, events, skip in zip(*(blocks[name] for name in _OF_IDS), strict=True):
        count = payload.count("\n") + 1
        if count != events + len(skip or ()):
            return None
        ordinals = [ordinal for ordinal in range(count) if ordinal not in skip] if skip else range(count)
        lines += [line + ordinal for ordinal in ordinals]
        event_ids += [given_ids[line + ordinal] or derived_event_id(block_id, ordinal) for ordinal in ordinals]
        line += count
    if any(event_id is not None and event_id != str(uuid.UUID(event_id)) for event_id in given_ids):
        return None  # braces and the like: not ours
    return lines, event_ids


def _fit(by_field: Sequence[Sequence[Any]]) -> bool:
    """Whether values of the right types are also within what an event may hold."""
    if not all(by_field[_TYPE]) or min(by_field[_TIMESTAMP]) < TIMESTAMP_MIN_US or max(by_field[_TIMESTAMP]) > TIMESTAMP_MAX_US:
        return False
    return all(isinstance(orjson.loads(metadata), dict) for metadata in by_field[_METADATA] if metadata is not None)


def _sizes(by_field: Sequence[Sequence[Any]]) -> list[int]:
    """What the lines add up to, as headers state it."""
    content = len("".join(by_field[_CONTENT]).encode())
    metadata = len("".join(filter(None, by_field[_METADATA])).encode())
    return [content, metadata, *(by_field[place].count(None) for place in _NULLABLE)]
