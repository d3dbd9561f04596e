"""Records of a spool file as bytes, and back with every damage named. Pure (docs/formats.md, "Spool").

A record says its own length and number in a head that has a checksum of its own, and carries one over everything. So what ends
too early (a crash while it was written) can be told from what was changed (damage), and after damage the next record is found.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from thermocline.errors import TierCorrupt
from thermocline.tiers.block import Block, shard_of

FILE_MARK: Final = b"TCSPOOL\n"
SPOOL_FORMAT: Final = "1"
HEADER, BLOCK, ROUND, DONE, RETURNED = b"HBRDX"
"""Kinds of records, by their letters."""

_MARK: Final = b"\xf5TCr"
"""Begins every record; 0xf5 is in no UTF-8 text, so it is in no payload."""
_HEAD: Final = struct.Struct("<4sBHIQ")  # mark, kind, events, bytes of the body, number
_CRC: Final = struct.Struct("<I")
_SUM: Final = struct.Struct("<Q")
_HEAD_BYTES: Final = _HEAD.size + _CRC.size
_END: Final = b"\xa5"
"""Ends every record. A file system may show zeros where the last writes before a power failure never arrived, and a changed bit
does not make a zero of this."""
RECORD_BYTES: Final = _HEAD_BYTES + _SUM.size + len(_END)
"""Of a record beyond its body."""


class Record(NamedTuple):
    """One record as it stands in its file."""

    offset: int
    kind: int
    events: int
    number: int
    body: bytes


class Damage(NamedTuple):
    """Bytes of a file that are not what was written."""

    offset: int
    size: int
    kind: int
    """Of the record they were, 0 when that cannot be told."""
    events: int
    """In that record, if it was a block."""


class Scan(NamedTuple):
    """What a file holds. Bytes from `end` on are a record that was never finished."""

    records: list[Record]
    damages: list[Damage]
    end: int


class Round(msgspec.Struct, frozen=True, array_like=True):
    """Blocks about to be sent, and what they are sent under."""

    producer: str
    incarnation: str
    at_us: int
    """By the clock of this machine."""
    numbers: Mapping[int, int]
    """record number → number of the block for its producer and shard."""


class Returned(msgspec.Struct, frozen=True, array_like=True):
    """Lines of a block that are not to be sent any more."""

    number: int
    ordinals: Sequence[int]
    reason: str
    unsure: bool = False
    """They may be stored: it cannot be found out any more."""


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What a file says of itself."""

    format: str
    namespace: str
    round: Round | None = None
    """Of blocks that were on the wire when they were put into this file."""


_Fields = tuple[str, str, int, int, int, str, bytes, str, tuple[tuple[int, str], ...]]
_decode_block = msgspec.msgpack.Decoder(_Fields).decode
_encode = msgspec.msgpack.Encoder().encode


def record(kind: int, number: int, body: bytes, events: int = 0) -> bytes:
    """One record."""
    head = _HEAD.pack(_MARK, kind, events, len(body), number)
    digest = xxhash.xxh64(head)
    digest.update(body)
    return b"".join((head, _CRC.pack(zlib.crc32(head)), body, _SUM.pack(digest.intdigest()), _END))


def block_record(block: Block, number: int) -> bytes:
    fields: _Fields = (
        block.conversation_id,
        block.block_id,
        block.lines,
        block.timestamp_min_us,
        block.timestamp_max_us,
        block.sizes,
        block.payload,
        block.checksum,
        block.event_ids,
    )
    return record(BLOCK, number, _encode(fields), block.lines)


def struct_record(kind: int, number: int, value: Any) -> bytes:
    """A record whose body is `value` as MessagePack."""
    return record(kind, number, _encode(value))


def block_of_record(found: Record, shards: int) -> Block:
    """The block a record was made of; its shard is worked out anew."""
    conversation_id, block_id, lines, earliest, latest, sizes, payload, checksum, event_ids = decoded(found, _Fields)
    return Block(
        conversation_id=conversation_id,
        shard=shard_of(conversation_id, shards),
        block_id=block_id,
        lines=lines,
        timestamp_min_us=earliest,
        timestamp_max_us=latest,
        sizes=sizes,
        payload=payload,
        checksum=checksum,
        event_ids=event_ids,
    )


def decoded(found: Record, kind: Any) -> Any:
    """A record's body as a value of type `kind`. TierCorrupt when another program wrote it."""
    try:
        return _decode_block(found.body) if kind is _Fields else msgspec.msgpack.decode(found.body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise TierCorrupt(f"a spool record at byte {found.offset} has an unknown shape: {exc}") from exc


def scan(data: bytes) -> Scan:
    """Every sound record of a file, every damage, and where what was written to its end ends."""
    if FILE_MARK.startswith(data[: len(FILE_MARK)]) and len(data) < len(FILE_MARK):
        return Scan([], [], 0)
    records: list[Record] = []
    damages: list[Damage] = []
    if not data.startswith(FILE_MARK):
        damages.append(Damage(0, len(FILE_MARK), 0, 0))
    at = len(FILE_MARK)
    while at < len(data):
        found = _record_at(data, at)
        if isinstance(found, Record):
            records.append(found)
            at += RECORD_BYTES + len(found.body)
            continue
        after = _next_record(data, at + 1)
        if found is None and after == len(data):
            return Scan(records, damages, at)
        kind, events, size = (0, 0, after - at) if found is None else found
        damages.append(Damage(at, min(size, after - at), kind, events))
        at += min(size, after - at)
    return Scan(records, damages, at)


def _record_at(data: bytes, at: int) -> Record | tuple[int, int, int] | None:
    """The record that begins there; (kind, events, size) of a damaged one; None for one that was never finished."""
    left = len(data) - at
    if left < _HEAD_BYTES:
        return None
    head = data[at : at + _HEAD.size]
    mark, kind, events, size, number = _HEAD.unpack(head)
    if mark != _MARK or zlib.crc32(head) != _CRC.unpack_from(data, at + _HEAD.size)[0]:
        return None if data.endswith(b"\0") else _damaged_head(data[at : at + _HEAD_BYTES], left)
    if left < size + RECORD_BYTES:
        return None
    body = data[at + _HEAD_BYTES : at + _HEAD_BYTES + size]
    digest = xxhash.xxh64(head)
    digest.update(body)
    end = at + size + RECORD_BYTES
    if data[at + _HEAD_BYTES + size : end] != _SUM.pack(digest.intdigest()) + _END:
        return None if not data[end - 1 :].strip(b"\0") else (kind, events, size + RECORD_BYTES)
    return Record(at, kind, events, number, body)


def _damaged_head(head: bytes, left: int) -> tuple[int, int, int]:
    """(kind, events, size) of a record with a damaged head, as they were if one bit of it has changed; else 0, 0, all."""
    for place in range(8 * len(head)):
        changed = bytearray(head)
        changed[place // 8] ^= 1 << place % 8
        mark, kind, events, size, _ = _HEAD.unpack_from(changed)
        if mark == _MARK and zlib.crc32(changed[: _HEAD.size]) == _CRC.unpack_from(changed, _HEAD.size)[0]:
            return kind, events, min(left, size + RECORD_BYTES)
    return 0, 0, left


def _next_record(data: bytes, start: int) -> int:
    """Where the next sound record begins; the end of the data when there is none."""
    at = data.find(_MARK, start)
    while at >= 0:
        if isinstance(_record_at(data, at), Record):
            return at
        at = data.find(_MARK, at + 1)
    return len(data)
