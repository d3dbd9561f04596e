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

LINES_MAX: Final = 500
"""From about here on SQL is faster."""
TIMESTAMP_MAX_US: Final = 253_402_300_799_999_999
_ARROW: Final = {
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
}
SCHEMA: Final = pa.schema([(column.name, _ARROW.get(column.sql_type, pa.string())) for column in COLUMNS])
"""The columns of `events` as a query gives them."""
PLACES: Final = pa.schema([("shard", pa.int32()), ("position_ms", pa.int64()), ("position_seq", pa.int64())])

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
_NULLABLE: Final = [_FIELDS.index(name) for name in NULLABLE_COLUMNS]
_decode: Any = msgspec.json.Decoder(_Line).decode
_encode: Any = msgspec.json.Encoder().encode


def few(blocks: pa.Table) -> bool:
    """Whether decoding here is the faster way."""
    return blocks.num_rows == 0 or int(pc.sum(blocks.column("events")).as_py()) <= LINES_MAX


def decoded(blocks: pa.Table) -> pa.Table | None:
    """The rows of `blocks` (hot.BLOCKS_SCHEMA): SCHEMA, then PLACES, in log order. None when a line is not as we write it."""
    try:
        found = [_rows(block) for block in blocks.to_pylist()]
        if None in found:
            return None
        rows = [row for part in found if part is not None for row in part]
        names = [*_FIELDS, "conversation_id", "seq", "ingested_at", "sample_rate", *PLACES.names]
        by_name = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
        arrays = [_array(by_name[field.name], field.type) for field in (*SCHEMA, *PLACES)]
    except (ValueError, OverflowError, msgspec.MsgspecError):
        return None
    return pa.Table.from_arrays(arrays, schema=pa.schema([*SCHEMA, *PLACES]))


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return pa.array(values, kind)


def _rows(block: dict[str, Any]) -> list[tuple[Any, ...]] | None:
    """One tuple per event of the block; None when something about it is odd."""
    payload, skip = block["payload"], block["skip"] or ()
    lines = payload.encode().split(b"\n")
    if block["fault"] is not None or len(lines) != block["events"] + len(skip) or "\\u0000" in payload:
        return None
    parsed = [_decode(line) for line in lines]
    if [_encode(line) for line in parsed] != lines and not all(orjson.dumps(orjson.loads(line)) == line for line in lines):
        return None  # keys twice, blanks, numbers in other forms: not ours
    values = [msgspec.structs.astuple(line) for line in parsed]
    by_field = list(zip(*values, strict=True))
    if _sizes(by_field) != block["sizes"] or not _fit(by_field):
        return None
    rest = (block["ingested_us"], 1.0, block["shard"], block["position_ms"], block["position_seq"])
    seq, rows = block["seq_first"], []
    for ordinal, line in enumerate(values):
        if ordinal not in skip:
            event_id = line[_EVENT_ID]
            if event_id is None:
                event_id = derived_event_id(block["block_id"], ordinal)
            elif event_id != str(uuid.UUID(event_id)):
                return None  # braces and the like: not ours
            rows.append((event_id, *line[1:], block["conversation_id"], seq, *rest))
            seq += 1
    return rows


def _fit(by_field: Sequence[Sequence[Any]]) -> bool:
    """Whether values of the right types are also within what an event may hold."""
    if not all(by_field[_TYPE]) or min(by_field[_TIMESTAMP]) < TIMESTAMP_MIN_US or max(by_field[_TIMESTAMP]) > TIMESTAMP_MAX_US:
        return False
    return all(isinstance(orjson.loads(metadata), dict) for metadata in by_field[_METADATA] if metadata is not None)


def _sizes(by_field: Sequence[Sequence[Any]]) -> list[int]:
    """What the block's header should state (docs/formats.md, `w`)."""
    content = len("".join(by_field[_CONTENT]).encode())
    metadata = len("".join(filter(None, by_field[_METADATA])).encode())
    return [content, metadata, *(by_field[place].count(None) for place in _NULLABLE)]
