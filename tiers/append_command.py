"""The call of the append script as bytes ready for the wire. Pure.

All that a conversation's blocks share is packed once and kept: packing the 28 arguments anew for every block takes longer than
checking and encoding its event.
"""

from __future__ import annotations

from typing import Final

import xxhash

from thermocline.config import HotSettings
from thermocline.event import CLOCK_AHEAD_MAX_US, FORMAT

from .block import Block, head_place
from .hot_keys import Keys
from .redis_link import Script, bulk_strings

APPEND: Final = Script("append")
CONVERSATIONS_MAX: Final = 4096
"""Whose arguments one session keeps packed, half a KiB each."""
_ARGUMENTS: Final = 29
"""EVALSHA, hash, number of keys, 7 keys, 19 arguments; ids come on top."""


class AppendCommand:
    """Packs the blocks of one producer for one store."""

    def __init__(self, keys: Keys, settings: HotSettings, *, producer: str, incarnation: str, buckets: int) -> None:
        self.producer = producer
        self._keys = keys
        self._incarnation = incarnation
        self._buckets = buckets
        self._shared: dict[str, bytes] = {}
        limits = (
            CLOCK_AHEAD_MAX_US,
            settings.unsettled_bytes_max,
            settings.unsettled_blocks_max,
            max(1, int(settings.cache_window_s * 1000)),
            int(settings.ids_window_s * 1e6),
            settings.ids_max,
        )
        self._limits = b"\r\n" + bulk_strings(limits)

    def packed(self, block: Block, number: int, expected_seq: int | None) -> bytes:
        """The command that appends `block` under `number`."""
        shared = self._shared.get(block.conversation_id) or self._share(block)
        payload, sizes = block.payload, block.sizes
        own, lines = str(number), str(block.lines)
        expected = "" if expected_seq is None else str(expected_seq)
        earliest, latest = str(block.timestamp_min_us), str(block.timestamp_max_us)
        text = (
            f"${len(own)}\r\n{own}\r\n${len(expected)}\r\n{expected}\r\n${len(lines)}\r\n{lines}\r\n"
            f"${len(earliest)}\r\n{earliest}\r\n${len(latest)}\r\n{latest}\r\n${len(block.block_id)}\r\n{block.block_id}\r\n"
            f"${len(sizes)}\r\n{sizes}\r\n${len(block.checksum)}\r\n{block.checksum}\r\n${len(payload)}\r\n"
        )
        if not block.event_ids:
            return b"".join((b"*%d\r\n" % _ARGUMENTS, shared, text.encode(), payload, self._limits))
        ids = _ids(block)
        return b"".join((b"*%d\r\n" % (_ARGUMENTS + len(ids)), shared, text.encode(), payload, self._limits, bulk_strings(ids)))

    def _share(self, block: Block) -> bytes:
        """The arguments that do not change from block to block of a conversation."""
        keys, shard, conversation_id = self._keys, block.shard, block.conversation_id
        bucket, field = head_place(conversation_id, self._buckets)
        names = (
            keys.meta(shard),
            keys.log(shard),
            keys.pointers(shard, conversation_id),
            keys.heads(shard, bucket),
            keys.producer(shard, self.producer),
            keys.ids(shard, "now"),
            keys.ids(shard, "prev"),
        )
        shared = bulk_strings(("EVALSHA", APPEND.sha, len(names), *names, FORMAT, self._incarnation, conversation_id, field))
        if len(self._shared) >= CONVERSATIONS_MAX:
            self._shared.clear()
        self._shared[conversation_id] = shared
        return shared


def _ids(block: Block) -> list[str | int]:
    """ordinal, field; for each event whose caller gave an id."""
    conversation = xxhash.xxh64_hexdigest(block.conversation_id.encode(), seed=0)
    return [part for ordinal, event_id in block.event_ids for part in (ordinal, conversation + event_id.replace("-", ""))]
