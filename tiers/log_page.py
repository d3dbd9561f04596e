"""Log entries as Redis gives them → one Arrow table of blocks, checksums verified. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from .block import BLOCK_FORMAT, Position, entry_checksum, payload_checksum
from .hot import BLOCKS_SCHEMA

_NAMES = [b"c", b"s", b"n", b"N", b"B", b"t", b"a", b"z", b"u", b"w", b"x", b"v", b"d", b"y"]
_NAMES_SKIP = [*_NAMES, b"k"]
Entry = Sequence[Any]
"""[id, [name, value, …]], bytes."""


class UnreadableEntry(Exception):
    """Internal: an entry without the fields that keep the count of events."""


def blocks_table(entries: Sequence[tuple[int, Entry]]) -> pa.Table:
    """One row per (shard, entry), BLOCKS_SCHEMA, order kept. A block that fails a check has `fault` set and its payload in
    base64. UnreadableEntry when even the counters cannot be read."""
    rows = [_row(shard, entry) for shard, entry in entries]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(BLOCKS_SCHEMA)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, BLOCKS_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=BLOCKS_SCHEMA)


def _row(shard: int, entry: Entry) -> tuple[Any, ...]:
    position, flat = Position.parse(entry[0]), entry[1]
    names, values = flat[0::2], flat[1::2]
    if names != _NAMES and names != _NAMES_SKIP:
        raise UnreadableEntry(f"shard {shard}, entry {position}: fields {b' '.join(names)[:80]!r}")
    c, s, n, total, size, t, _a, _z, u, w, _x, _v, d, _y, *k = values
    try:
        counters = (int(s), int(n), int(total), int(size), int(t))
    except ValueError as exc:
        raise UnreadableEntry(f"shard {shard}, entry {position}: {exc}") from exc
    fault = _fault(dict(zip(names, values, strict=True)), k[0] if k else b"")
    if fault is not None:
        conversation = c.decode(errors="replace")
        return (shard, *position, conversation, *counters, "", [], None, base64.b64encode(d).decode(), fault)
    skip = [int(ordinal) for ordinal in k[0].split(b",")] if k else None
    sizes = [int(size) for size in w.split(b",")]
    return (shard, *position, c.decode(), *counters, u.decode(), sizes, skip, d.decode(), None)


def _fault(fields: dict[bytes, bytes], skipped: bytes) -> str | None:
    """Why the block cannot be used, or None."""
    if fields[b"v"] != BLOCK_FORMAT.encode():
        return f"block format {fields[b'v'][:16]!r} is not {BLOCK_FORMAT}"
    if entry_checksum(fields) != fields[b"y"]:
        return "header checksum y does not match"
    try:
        lines = int(fields[b"n"]) + (skipped.count(b",") + 1 if skipped else 0)
        expected = payload_checksum(
            fields[b"c"].decode(),
            fields[b"u"].decode(),
            lines,
            int(fields[b"a"]),
            int(fields[b"z"]),
            fields[b"w"].decode(),
            fields[b"d"],
        )
        if expected.encode() != fields[b"x"]:
            return "payload checksum x does not match"
        fields[b"d"].decode()
        [int(size) for size in fields[b"w"].split(b",")]
        if skipped:
            [int(ordinal) for ordinal in skipped.split(b",")]
    except ValueError as exc:
        return f"not readable: {exc}"
    return None
