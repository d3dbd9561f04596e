"""Which stored objects a pass of scrub reads. Pure: what there is and when it was read in, what to read out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

SEGMENT, FILE, COPY, LOG, LEDGER = "segment", "file", "copy", "log", "ledger"
"""Kinds of items: a segment, an object of the cold tier, a local copy of one, a shard's log in Redis, the ledger."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One object that can be read again by itself."""

    kind: str
    name: str
    """Segment id, file id, key of the copy, number of the shard, or `ledger`."""
    bytes: int
    created_us: int
    """What was written was read back then."""

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"


def due_items(
    items: Sequence[Item],
    read_us: Mapping[str, int],
    now_us: int,
    *,
    period_us: int,
    every_us: int,
    bytes_max: int,
) -> list[Item]:
    """What one pass reads, the one read longest ago first; [] when everything was read half a period ago or later.

    items      everything there is
    read_us    key → when it was last read; what is missing counts from when it was written
    period_us  in which everything is to be read once
    every_us   between two passes: a pass reads that share of all bytes, and what is older than the period besides
    bytes_max  bound on a pass; one item is read however large it is
    """
    last = {item.key: max(read_us.get(item.key, 0), item.created_us) for item in items}
    share = min(bytes_max, sum(item.bytes for item in items) * every_us // period_us)
    chosen: list[Item] = []
    size = 0
    for item in sorted(items, key=lambda item: (last[item.key], item.key)):
        age_us = now_us - last[item.key]
        if age_us < period_us // 2:
            break
        room = bytes_max if age_us >= period_us else share
        if chosen and size + item.bytes > room:
            break
        chosen.append(item)
        size += item.bytes
    return chosen
