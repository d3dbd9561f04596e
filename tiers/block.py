"""The block: the unit Redis stores, as bytes and back. Pure: values in, values out (docs/formats.md, "Block")."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
import xxhash

BLOCK_FORMAT = "1"
ERA_SEQ_STEP = 1_000_000
"""How far every head skips when acknowledged events may be gone, so that no seq is given twice."""


class Position(NamedTuple):
    """A place in a shard's log: the id of the last entry before it. Ordered as Redis orders stream ids."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str | bytes) -> Position:
        ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(ms), int(seq or 0))

    def next(self) -> Position:
        """The smallest position after this one."""
        return Position(self.ms, self.seq + 1)


ORIGIN = Position(0, 0)


class Block(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Events of one conversation, encoded and ready to be appended. Immutable: a resend sends the same bytes."""

    conversation_id: str
    shard: int
    block_id: str
    """UUIDv7 text with its last 16 bits zero; event ids derive from it."""
    lines: int
    timestamp_min_us: int
    timestamp_max_us: int
    sizes: str
    """content bytes, metadata bytes, NULL count per nullable column, comma separated."""
    payload: bytes
    """NDJSON, `lines` lines."""
    checksum: str
    event_ids: tuple[tuple[int, str], ...] = ()
    """(ordinal, id) of the events whose caller gave an id."""


def shard_of(conversation_id: str, shards: int) -> int:
    """The shard of a conversation, 0 to shards - 1."""
    return xxhash.xxh64_intdigest(conversation_id.encode(), seed=0) % shards


def head_place(conversation_id: str, buckets: int) -> tuple[int, str]:
    """(bucket, field) of a conversation's head."""
    raw = conversation_id.encode()
    bucket = (xxhash.xxh64_intdigest(raw, seed=0) >> 32) % buckets
    return bucket, conversation_id if len(raw) <= 64 else "#" + xxhash.xxh128_hexdigest(raw)


def parse_head(value: bytes | str) -> tuple[int, int]:
    """(last seq, era) of a stored head."""
    seq, _, era = (value.decode() if isinstance(value, bytes) else value).partition(".")
    return int(seq), int(era or 0)


def payload_checksum(
    conversation_id: str,
    block_id: str,
    lines: int,
    timestamp_min_us: int,
    timestamp_max_us: int,
    sizes: str,
    payload: bytes,
) -> str:
    """16 hex digits over what the client made: header field `x`."""
    count, earliest, latest = str(lines), str(timestamp_min_us), str(timestamp_max_us)
    head = (  # each part after its length in bytes; only the first may be more than ASCII
        f"{len(conversation_id.encode())}:{conversation_id}{len(block_id)}:{block_id}{len(count)}:{count}"
        f"{len(earliest)}:{earliest}{len(latest)}:{latest}{len(BLOCK_FORMAT)}:{BLOCK_FORMAT}{len(sizes)}:{sizes}{len(payload)}:"
    )
    digest = xxhash.xxh64(head.encode(), seed=0)
    digest.update(payload)
    return digest.hexdigest()


def entry_checksum(c: bytes, s: bytes, n: bytes, total: bytes, size: bytes, t: bytes, k: bytes, x: bytes) -> str:
    """16 hex digits over what the append script made: header field `y`; total and size are N and B."""
    signed = b"%d:%b%d:%b%d:%b%d:%b%d:%b%d:%b%d:%b%d:%b" % (
        len(c), c, len(s), s, len(n), n, len(total), total, len(size), size, len(t), t, len(k), k, len(x), x
    )  # fmt: skip
    return hashlib.sha1(signed, usedforsecurity=False).hexdigest()[:16]


def derived_event_id(block_id: str, ordinal: int) -> str:
    """The id of an event whose caller gave none."""
    return f"{block_id[:32]}{ordinal:04x}"
