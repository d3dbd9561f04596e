"""Lines as blocks, and a block's events back. Pure, but for the ids it draws (docs/formats.md, "Block")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import orjson
import uuid_utils

from thermocline.event import NULLABLE_COLUMNS, Event
from thermocline.tiers.block import Block, payload_checksum, shard_of

from .line import Line

_shard_of = lru_cache(maxsize=65_536)(shard_of)


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
    event_ids: tuple[tuple[int, str], ...]
    if len(lines) == 1:  # each append that is not buffered
        [line] = lines
        payload, earliest, latest = line.payload, line.timestamp_us, line.timestamp_us
        sizes = f"{line.content_bytes},{line.metadata_bytes},{_null_counts_alike(line.nulls, 1)}"
        event_ids = () if line.event_id is None else ((0, line.event_id),)
    else:
        payload = b"\n".join([line.payload for line in lines])
        stamps = [line.timestamp_us for line in lines]
        earliest, latest = min(stamps), max(stamps)
        content_bytes = sum([line.content_bytes for line in lines])
        metadata_bytes = sum([line.metadata_bytes for line in lines])
        sizes = f"{content_bytes},{metadata_bytes},{_null_counts([line.nulls for line in lines])}"
        event_ids = tuple([(ordinal, line.event_id) for ordinal, line in enumerate(lines) if line.event_id is not None])
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
        event_ids=event_ids,
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
