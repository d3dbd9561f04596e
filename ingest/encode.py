"""Events as bytes: event → line → block, and a block's events back. Pure, but for the ids it draws (docs/formats.md, "Block")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import orjson
import uuid_utils

from thermocline.errors import InvalidEvent
from thermocline.event import EVENT_BYTES_MAX, NULLABLE_COLUMNS, Event
from thermocline.tiers.block import Block, payload_checksum, shard_of

from .validate import Fields, checked

_shard_of = lru_cache(maxsize=65_536)(shard_of)
_nulls_of: dict[tuple[str, ...], int] = {}
"""Keys of a line → bits of the nullable columns that are not among them; bounded by the columns' combinations."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One event, checked and encoded: all that is left of it between append and Redis."""

    payload: bytes
    timestamp_us: int
    content_bytes: int
    metadata_bytes: int
    nulls: int
    """Bit i is set when NULLABLE_COLUMNS[i] is NULL."""
    event_id: str | None


def line_of(fields: Fields, now_us: int) -> Line:
    """The line of an event given as values in the order of validate.FIELDS; InvalidEvent when it breaks a rule."""
    return encoded(checked(fields, now_us))


def encoded(values: Mapping[str, Any]) -> Line:
    """The line of values that `checked` gave; InvalidEvent when it is too long."""
    payload = orjson.dumps(values)
    if len(payload) > EVENT_BYTES_MAX:
        problem = f"makes the event {len(payload):,} bytes as JSON, at most {EVENT_BYTES_MAX:,}: split it over several events"
        raise InvalidEvent("content", problem)
    names = tuple(values)
    nulls = _nulls_of.get(names)
    if nulls is None:
        nulls = _nulls_of[names] = sum(1 << bit for bit, name in enumerate(NULLABLE_COLUMNS) if name not in values)
    content, metadata = values.get("content", ""), values.get("metadata", "")
    return Line(
        payload,
        values["timestamp"],
        len(content) if content.isascii() else len(content.encode()),
        len(metadata) if metadata.isascii() else len(metadata.encode()),
        nulls,
        values.get("event_id"),
    )


def blocks_of(conversation_id: str, lines: Sequence[Line], *, shards: int, events_max: int, bytes_max: int) -> Iterator[Block]:
    """The lines of one conversation as blocks, in order; each has at most `events_max` lines and `bytes_max`, or one line."""
    start = size = 0
    for end, line in enumerate(lines):
        size += len(line.payload) + 1
        if end > start and (size - 1 > bytes_max or end - start >= events_max):
            yield block_of(conversation_id, lines[start:end], shards)
            start, size = end, len(line.payload) + 1
    if lines:
        yield block_of(conversation_id, lines[start:], shards)


def block_of(conversation_id: str, lines: Sequence[Line], shards: int) -> Block:
    """All of these lines as one block."""
    payload = b"\n".join([line.payload for line in lines])
    stamps = [line.timestamp_us for line in lines]
    earliest, latest = min(stamps), max(stamps)
    content_bytes = sum([line.content_bytes for line in lines])
    metadata_bytes = sum([line.metadata_bytes for line in lines])
    sizes = f"{content_bytes},{metadata_bytes},{_null_counts([line.nulls for line in lines])}"
    block_id = str(uuid_utils.uuid7())[:32] + "0000"
    return Block(
        conversation_id=conversation_id,
        shard=_shard_of(conversation_id, shards),
        block_id=block_id,
        lines=len(lines),
        timestamp_min_us=earliest,
        timestamp_max_us=latest,
        sizes=sizes,
        payload=payload,
        checksum=payload_checksum(conversation_id, block_id, len(lines), earliest, latest, sizes, payload),
        event_ids=tuple([(ordinal, line.event_id) for ordinal, line in enumerate(lines) if line.event_id is not None]),
    )


def _null_counts(nulls: list[int]) -> str:
    """How many lines lack each nullable column, comma separated."""
    count = len(nulls)
    if nulls.count(nulls[0]) == count:
        return _null_counts_alike(nulls[0], count)
    kinds = Counter(nulls)
    return ",".join([str(sum([n for bits, n in kinds.items() if bits >> bit & 1])) for bit in range(len(NULLABLE_COLUMNS))])


@lru_cache(maxsize=4096)
def _null_counts_alike(bits: int, count: int) -> str:
    return ",".join([str(count if bits >> bit & 1 else 0) for bit in range(len(NULLABLE_COLUMNS))])


def events_of(block: Block) -> list[Event]:
    """The events a block was made from, as they would be stored: appended again they give the same lines."""
    lines = block.payload.split(b"\n")
    return [Event(conversation_id=block.conversation_id, **orjson.loads(line)) for line in lines]


def timestamps_of(block: Block) -> list[int]:
    """The timestamps of a block's lines, µs."""
    return [orjson.loads(line)["timestamp"] for line in block.payload.split(b"\n")]
