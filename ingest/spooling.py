"""The sender of a Producer that has a spool: what cannot be stored at once is put there instead of waiting in memory.

    the spool is empty       blocks are sent, as without a spool. At the first try in vain (Redis away, unconfirmed, shedding
                             load, in doubt) all that has no outcome goes into the spool, blocks in doubt with their numbers
    it is not                blocks go into the spool, after those that are there, while drain.py sends from its other end
    it is nearly empty,      the sender waits for the rest to be stored, then sends again by itself
    and is being emptied
    it is full, or cannot    the buffer fills and append waits, then raises Backpressure; the first of the two that can be done
    be written               next, storing and spooling, is done

An event in the spool is as good as stored for `flush`: its room in the buffer is free.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from thermocline.config import IngestSettings
from thermocline.errors import Backpressure, ThermoclineError, TierUnavailable
from thermocline.tiers.block import Block

from .appender import Unresolved
from .buffer import Buffer
from .delivery import PAUSE_FIRST_S, PAUSE_MAX_S
from .drain import Drain
from .sender import Sender
from .sending import ClockAhead, Sending, Stored
from .source import Source
from .spool_record import Round

NEARLY_EMPTY_BYTES = 32 << 20
"""So much is stored in a second or two: then it is worth waiting until the spool is not needed any more."""
WAIT_MAX_S = 5.0


class SpoolingSender(Sender):
    """A Sender over the spool of `drain`."""

    def __init__(self, buffer: Buffer, source: Source, ingest: IngestSettings, drain: Drain) -> None:
        super().__init__(buffer, source, ingest, drain.delivery)
        self._drain = drain
        self._spool = drain.spool
        self._trouble: ThermoclineError | None = None
        """What kept the last try from storing."""
        self._doubt_us = 0
        """Since when something on the wire may be stored."""

    def _drop_appender(self) -> None:
        if self._spool.empty:  # else it is the drain's
            super()._drop_appender()

    def _deliver(self, blocks: list[Block]) -> Sending | None:
        sending, pause_s = Sending(blocks), PAUSE_FIRST_S
        while True:
            if self._may_send():
                left = self._sent(sending)
                if left is None:
                    return None
                sending = left
            if self._put_aside(sending):
                return None
            if self._stop.wait(pause_s):
                return sending
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    def _may_send(self) -> bool:
        """Whether the spool is empty, perhaps in a moment."""
        if self._spool.empty:
            return True
        if self._drain.trouble is not None or self._spool.bytes > NEARLY_EMPTY_BYTES:
            return False
        self._spool.wait(lambda: self._spool.empty or self._drain.trouble is not None or self._stop.is_set(), WAIT_MAX_S)
        return self._spool.empty

    def _sent(self, sending: Sending) -> Sending | None:
        """Try once; what is left, None when every event has its outcome."""
        while True:
            self._buffer.trouble = None
            try:
                self._attempt(sending)
            except Unresolved as exc:
                self._doubt_us = self._doubt_us or time.time_ns() // 1000
                self._trouble = TierUnavailable(f"Redis stopped answering ({exc.reason})")
                return sending
            again, self._doubt_us = self._sort(sending), 0
            if not again:
                return None
            sending, self._trouble = Sending(again), self._buffer.trouble
            if self._trouble is not None:
                return sending

    def _put_aside(self, sending: Sending) -> bool:
        """Put what has no outcome into the spool; False when there is no room, and then nothing has changed."""
        left = [place for place, outcome in enumerate(sending.outcomes) if outcome is None or isinstance(outcome, ClockAhead)]
        blocks = [sending.blocks[place] for place in left]
        try:
            self._spool.append(blocks, self._round_of(sending, left))
        except Backpressure as exc:
            why = self._trouble if self._spool.empty else self._drain.trouble
            reason = exc.problem if why is None else f"{exc.problem}; what waits in it does so because {why}"
            self._buffer.trouble = Backpressure(reason, retry_after_s=exc.retry_after_s)
            return False
        self._buffer.trouble, self._doubt_us = None, 0
        for block, outcome in zip(sending.blocks, sending.outcomes, strict=True):
            if outcome is None or isinstance(outcome, Stored | ClockAhead):
                self._release(block)
            else:
                self._hand_back([block], outcome)
        return True

    def _round_of(self, sending: Sending, left: Sequence[int]) -> Round | None:
        """What `sending` has on the wire, by index in `left`, if it may be stored."""
        if not sending.in_doubt:
            return None
        appender = self._delivery.appender
        assert appender is not None, "what is in doubt was sent by an appender, which is kept for it"
        index = {place: index for index, place in enumerate(left)}
        numbers = {index[sent.place]: sent.number for sent in sending.sent}
        return Round(appender.producer, appender.incarnation, self._doubt_us, numbers)
