"""The numbers of one producer's blocks, shard by shard, and what was acknowledged under them. Pure.

The append script takes exactly `last + 1` of a producer and shard. A number belongs to a block from its first sending until its
outcome is certain; a block refused for certain gives it back.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Final

REMEMBERED_BLOCKS_MAX: Final = 65_536
"""Acknowledged blocks per shard whose sizes are kept, to say how many events were in those a store lost."""
PRODUCER_TTL_S: Final = 7 * 86_400
"""How long the store remembers a producer's numbers in a shard after their last use (docs/formats.md, `:p:`)."""
_TTL_MARGIN_S: Final = 3600
DOUBT_MAX_S: Final = PRODUCER_TTL_S - _TTL_MARGIN_S
"""How long a block may be in doubt and still be resent: its number is surely remembered."""


class _Shard:
    """events[i] is the number of events in block `first + i`."""

    __slots__ = ("events", "first", "last", "used_s")

    def __init__(self) -> None:
        self.last = 0
        self.used_s = 0.0
        self.first = 1
        self.events = array("H")

    def remember(self, number: int, events: int) -> None:
        place = number - self.first
        if place >= len(self.events):
            self.events.extend([0] * (place + 1 - len(self.events)))
        if place >= 0:
            self.events[place] = events
        if len(self.events) >= 2 * REMEMBERED_BLOCKS_MAX:
            self.first += REMEMBERED_BLOCKS_MAX
            del self.events[:REMEMBERED_BLOCKS_MAX]

    def take_back(self, last: int) -> int:
        """Forget the blocks after `last`; how many events were in them."""
        place = max(0, last + 1 - self.first)
        events = sum(self.events[place:])
        del self.events[place:]
        self.first = min(self.first, last + 1)
        self.last = last
        return events


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
        state = self._shards.get(shard)
        if state is None:
            state = self._shards[shard] = _Shard()
        state.last = max(state.last, number)
        state.used_s = now_s
        state.remember(number, events)

    def resume(self, shard: int, last: int, now_s: float) -> None:
        """Go on after a number that was acknowledged to another process; how many events were in its blocks is not known."""
        state = self._shards[shard] = _Shard()
        state.last, state.first, state.used_s = last, last + 1, now_s

    def take_back(self, lasts: Mapping[int, int], now_s: float) -> tuple[bool, dict[int, int]]:
        """Compare with the last numbers the store knows: whether it lacks blocks, and shard → events that were in them.

        A shard that was idle for so long that the store may simply have forgotten the producer counts no events. What is taken
        back is forgotten here, so that it is counted once.
        """
        short = {shard: last for shard, last in lasts.items() if last < self.last(shard)}
        lost = {}
        for shard, last in short.items():
            state = self._shards[shard]
            forgotten = last == 0 and now_s - state.used_s > DOUBT_MAX_S
            events = state.take_back(last)
            if events and not forgotten:
                lost[shard] = events
        return bool(short), lost
