"""A store filled fast: whole blocks straight to Redis, past validation and Producer, as many as a test of bounds needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from thermocline.event import Event
from thermocline.ingest.encode import blocks_of
from thermocline.ingest.line import Line, line_of
from thermocline.ingest.validate import fields_of
from thermocline.tiers.block import Block
from thermocline.tiers.opening import Tiers

BLOCK_LINES = 500
ROUND_BLOCKS = 16
DAY_US = 86_400_000_000


class Filler:
    """Appends blocks of 500 events, each of a conversation of its own, `chat-0`, `chat-1` and so on, to one store.

    ages_days  how long ago the events of a block happened: the blocks take these in turn
    """

    def __init__(self, tiers: Tiers, *, ages_days: Sequence[int] = (0,)) -> None:
        self._tiers = tiers
        self._session = tiers.hot.session()
        self._numbers: dict[int, int] = {}
        self._blocks = 0
        now_us = time.time_ns() // 1000
        self._lines = [list(_lines(now_us - age * DAY_US, now_us)) for age in ages_days]

    def append(self, events: int) -> None:
        """So many events, a multiple of 500 x 16. What Redis may hold is up to the caller."""
        last = self._blocks + events // BLOCK_LINES
        while self._blocks < last:
            requests = []
            for block in (self._block(number) for number in range(self._blocks, self._blocks + ROUND_BLOCKS)):
                self._numbers[block.shard] = self._numbers.get(block.shard, 0) + 1
                requests.append((block, self._numbers[block.shard], None))
            assert {reply.code for reply in self._session.send("p", requests, deadline_s=5)} == {"OK"}
            self._blocks += ROUND_BLOCKS

    def _block(self, number: int) -> Block:
        lines, shards = self._lines[number % len(self._lines)], self._tiers.settings.hot.shards
        [block] = blocks_of(f"chat-{number}", lines, shards=shards, events_max=BLOCK_LINES, bytes_max=1 << 20)
        return block

    def close(self) -> None:
        self._session.close()


def _lines(at_us: int, now_us: int) -> Iterator[Line]:
    for number in range(BLOCK_LINES):
        event = Event(
            conversation_id="any", event_type="output.chunk", content=f"word {number} " * 5, timestamp=at_us + 1000 * number
        )
        yield line_of(fields_of(event), now_us)
