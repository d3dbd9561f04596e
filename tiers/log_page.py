"""Log entries as Redis gives them → one Arrow table of blocks, checksums verified. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from .block import BLOCK_FORMAT, entry_checksum, payload_checksum
from .hot import BLOCKS_SCHEMA, BlockLists

_NAMES = [b"c", b"s", b"n", b"N", b"B", b"t", b"a", b"z", b"u", b"w", b"x", b"v", b"d", b"y"]
_NAMES_SKIP = [*_NAMES, b"k"]
_FORMAT = BLOCK_FORMAT.encode()
Entry = Sequence[Any]
"""[id, [name, value, …]], bytes."""


class UnreadableEntry(Exception):
    """Internal: an entry without the fields that keep the count of events."""


def blocks_table(entries: Sequence[tuple[int, Entry]]) -> pa.Table:
    """One row per (shard, entry), BLOCKS_SCHEMA, order kept. A block that fails a check has `fault` set and its payload in
    base64. UnreadableEntry when even the counters cannot be read."""
    columns = blocks_lists(entries)
    return pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in BLOCKS_SCHEMA], schema=BLOCKS_SCHEMA)


def blocks_lists(entries: Sequence[tuple[int, Entry]]) -> BlockLists:
    """`blocks_table` as it is before Arrow: for a few blocks making a table and reading it again takes longer than the rest."""
    rows = [_row(shard, entry) for shard, entry in entries]
    columns = zip(*rows, strict=True) if rows else [()] * len(BLOCKS_SCHEMA)
    return dict(zip(BLOCKS_SCHEMA.names, columns, strict=True))


class EntryFault(NamedTuple):
    """A log entry that is not what was appended, and what it says of itself, as far as that can be read."""

    position: bytes
    problem: str
    conversation_id: str
    seq_first: int
    events: int
    """0 when even that cannot be read."""


def entry_fault(shard: int, entry: Entry) -> EntryFault | None:
    """What is wrong with an entry; None when its checksums are right."""
    try:
        row = dict(zip(BLOCKS_SCHEMA.names, _row(shard, entry), strict=True))
    except UnreadableEntry as exc:
        return EntryFault(entry[0], str(exc).partition(": ")[2], "", 0, 0)
    if row["fault"] is None:
        return None
    return EntryFault(entry[0], row["fault"], row["conversation_id"], row["seq_first"], row["events"])


def _row(shard: int, entry: Entry) -> tuple[Any, ...]:
    raw, flat = entry
    ms, _, place = raw.partition(b"-")
    names, values, k = flat[0::2], flat[1::2], b""
    if names == _NAMES_SKIP:
        *values, k = values
    elif names != _NAMES:
        raise UnreadableEntry(f"shard {shard}, entry {raw.decode()}: fields {b' '.join(names)[:80]!r}")
    c, s, n, total, size, t, a, z, u, w, x, v, d, y = values
    try:
        counters = (int(s), int(n), int(total), int(size), int(t))
    except ValueError as exc:
        raise UnreadableEntry(f"shard {shard}, entry {raw.decode()}: {exc}") from exc
    try:
        skip = [int(ordinal) for ordinal in k.split(b",")] if k else None
        conversation, block_id, text, payload = c.decode(), u.decode(), w.decode(), d.decode()
        if v != _FORMAT:
            fault = f"block format {v[:16]!r} is not {BLOCK_FORMAT}"
        elif entry_checksum(c, s, n, total, size, t, k, x) != y.decode():
            fault = "header checksum y does not match"
        elif payload_checksum(conversation, block_id, counters[1] + len(skip or ()), int(a), int(z), text, d) != x.decode():
            fault = "payload checksum x does not match"
        else:
            sizes = list(map(int, text.split(",")))
            return (shard, int(ms), int(place), conversation, *counters, block_id, sizes, skip, payload, None)
    except ValueError as exc:
        fault = f"not readable: {exc}"
    return (shard, int(ms), int(place), c.decode(errors="replace"), *counters, "", [], None, base64.b64encode(d).decode(), fault)
