"""The numbers of one producer's blocks, shard by shard, and what was acknowledged under them. Pure.

The append script takes exactly `last + 1` of a producer and shard. A number belongs to a block from its first sending until its
outcome is certain; a block refused for certain gives it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

REMEMBERED_BLOCKS_MAX: Final = 65_536
"""Acknowledged blocks per shard whose sizes are kept, to say how many events were in those a store lost."""
PRODUCER_TTL_S: Final = 7 * 86_400
"""How long the store remembers a producer's numbers in a shard after their last use (docs/formats.md, `:p:`)."""
_TTL_MARGIN_S: Final = 3600


class _Shard:
    __slots__ = ("blocks", "last", "used_s")

    def __init__(self) -> None:
        self.last = 0
        self.used_s = 0.0
        self.blocks: deque[tuple[int, int]] = deque(maxlen=REMEMBERED_BLOCKS_MAX)


class Numbering:
    """One producer id and its numbers. A store that lost acknowledged blocks, or is a new one, needs a new Numbering."""

    def __init__(self, producer: str) -> None:
        self.producer = producer
        self._shards: dict[int, _Shard] = {}

    @property
    def shards(self) -> list[int]:
        """Shards that acknowledged a block."""
        return list(self._shards)

    def last(self, shard: int) -> int:
        """The highest number acknowledged, 0 when none: the next block gets the one after it."""
        state = self._shards.get(shard)
        return 0 if state is None else state.last

    def acknowledged(self, shard: int, number: int, events: int, now_s: float) -> None:
        """Record that the store has block `number` with so many events."""
        state = self._shards.setdefault(shard, _Shard())
        state.last = max(state.last, number)
        state.used_s = now_s
        state.blocks.append((number, events))

    def short(self, lasts: Mapping[int, int]) -> dict[int, int]:
        """The shards, of those whose last number the store knows, that lack acknowledged blocks; with that number."""
        return {shard: last for shard, last in lasts.items() if last < self.last(shard)}

    def events_lost(self, short: Mapping[int, int], now_s: float) -> dict[int, int]:
        """shard → acknowledged events in blocks after the last number the store knows.

        A shard that was idle for so long that the store may simply have forgotten the producer is left out.
        """
        lost = {}
        for shard, last in short.items():
            state = self._shards[shard]
            if last or now_s - state.used_s < PRODUCER_TTL_S - _TTL_MARGIN_S:
                lost[shard] = sum(events for number, events in state.blocks if number > last)
        return {shard: events for shard, events in lost.items() if events}
