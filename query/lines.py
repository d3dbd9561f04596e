"""Rows of a few blocks, decoded in Python: where planning the SQL of `parse_blocks` would cost more than its work. Pure.

Only lines exactly as our own encoder writes them are taken. Of anything else, be it one line, the answer is None and
`parse_blocks` judges, so that there is one rule for what an event is.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import islice
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
_ROW: Final = pa.struct(list(SCHEMA))
_PLACED_ROW: Final = pa.struct(list(WITH_PLACES))

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
_BLOCK_FIELDS: Final = ("payload", "skip", "events", "block_id", "conversation_id", "seq_first", "ingested_us")
_NULLABLE: Final = [_FIELDS.index(name) for name in NULLABLE_COLUMNS]
_decode_lines: Any = msgspec.json.Decoder(_Line).decode_lines
_encode_lines: Any = msgspec.json.Encoder().encode_lines


def few(blocks: pa.Table) -> bool:
    """Whether decoding here is the faster way."""
    return blocks.num_rows == 0 or int(pc.sum(blocks.column("events")).as_py()) <= LINES_MAX


def decoded(blocks: BlockLists, *, placed: bool = True) -> pa.RecordBatch | None:
    """The rows of `blocks`, in log order, WITH_PLACES or SCHEMA. None when a line is not as we write it."""
    kind, places = (_PLACED_ROW, PLACES.names) if placed else (_ROW, [])
    if blocks["fault"].count(None) < len(blocks["fault"]):
        return None
    try:
        rows = _rows(blocks, places) if blocks["payload"] else []
        # All columns at once: an array for each takes twice as long.
        return None if rows is None else pa.RecordBatch.from_struct_array(pa.array(rows, kind))
    except (ValueError, OverflowError, msgspec.MsgspecError):
        return None


def _rows(blocks: BlockLists, places: Sequence[str]) -> list[tuple[Any, ...]] | None:
    """Every event that is not skipped: its values as in SCHEMA, then `places`; None when something about a block is odd."""
    lines = _parsed("\n".join(blocks["payload"]).encode())
    if lines is None:
        return None
    by_field = list(zip(*lines, strict=True))
    if not _fit(by_field) or _sizes(by_field) != list(map(sum, zip(*blocks["sizes"], strict=True))):
        return None
    rows: list[tuple[Any, ...]] = []
    unread = iter(lines)
    for payload, skip, events, *rest in zip(*(blocks[name] for name in (*_BLOCK_FIELDS, *places)), strict=True):
        count = payload.count("\n") + 1
        if count != events + len(skip or ()):
            return None
        rows += _block_rows(list(islice(unread, count)), skip or (), *rest)
    return rows


def _block_rows(
    lines: Sequence[tuple[Any, ...]],
    skip: Sequence[int],
    block_id: str,
    conversation_id: str,
    seq_first: int,
    us: int,
    *place: int,
) -> list[tuple[Any, ...]]:
    """The rows of a block's lines, of those that are not skipped."""
    kept = [(ordinal, line) for ordinal, line in enumerate(lines) if ordinal not in skip]
    return [
        (event_id or derived_event_id(block_id, ordinal), conversation_id, seq, event_type, timestamp, us, *rest, 1.0, *place)
        for seq, (ordinal, (event_id, event_type, timestamp, *rest)) in enumerate(kept, start=seq_first)
    ]


def _parsed(text: bytes) -> list[tuple[Any, ...]] | None:
    """The values of each line in the order of its fields; None when one is not as we write it: keys twice, blanks, numbers in
    other forms."""
    parsed = _decode_lines(text)
    if b"\\u0000" in text:
        return None
    if _encode_lines(parsed) != text + b"\n" and not all(orjson.dumps(orjson.loads(line)) == line for line in text.split(b"\n")):
        return None
    return list(map(msgspec.structs.astuple, parsed))


def _fit(by_field: Sequence[Sequence[Any]]) -> bool:
    """Whether values of the right types are also within what an event may hold."""
    if not all(by_field[_TYPE]) or min(by_field[_TIMESTAMP]) < TIMESTAMP_MIN_US or max(by_field[_TIMESTAMP]) > TIMESTAMP_MAX_US:
        return False
    if any(event_id is not None and event_id != str(uuid.UUID(event_id)) for event_id in by_field[_EVENT_ID]):
        return False  # braces and the like: not ours
    return all(isinstance(orjson.loads(metadata), dict) for metadata in by_field[_METADATA] if metadata is not None)


def _sizes(by_field: Sequence[Sequence[Any]]) -> list[int]:
    """What the lines add up to, as headers state it."""
    content = len("".join(by_field[_CONTENT]).encode())
    metadata = len("".join(filter(None, by_field[_METADATA])).encode())
    return [content, metadata, *(by_field[place].count(None) for place in _NULLABLE)]
