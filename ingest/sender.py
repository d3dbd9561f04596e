"""The Producer's thread: takes what waits in the buffer, sends it in blocks, and does not let go until each has its outcome.

    stored                             its room in the buffer is free again
    Redis away, unconfirmed, in doubt  tried again for as long as it takes; the buffer fills meanwhile
    Backpressure                       the same, with a growing pause
    an event too far in the future     handed back alone; the rest of its block is sent without it
    TierCorrupt, ConfigError           the blocks are handed back: trying again cannot help
    told to give up                    everything left is handed back, with a retry when some of it is in doubt

Handed back means: the next call of the Producer raises PartialAppend with the events. Within a conversation a block is sent only
when every earlier one has its outcome.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from thermocline.config import IngestSettings
from thermocline.errors import Backpressure, ThermoclineError, TierUnavailable
from thermocline.tiers.block import Block

from .appender import Appender, Unresolved
from .buffer import Buffer
from .call import Call
from .delivery import PAUSE_FIRST_S, PAUSE_MAX_S, Delivery
from .encode import blocks_of, events_of
from .line import Line
from .remainder import events_at, late_ordinals, without
from .sending import ROUND_BYTES_MAX, ClockAhead, Sending, Stored
from .source import Source

BLOCKS_MAX = 256
"""Blocks sent, and their room freed, together."""


class Sender:
    """One thread, from `start` until the buffer is closed and empty."""

    def __init__(self, buffer: Buffer, source: Source, ingest: IngestSettings, delivery: Delivery | None = None) -> None:
        self._buffer = buffer
        self._source = source
        self._ingest = ingest
        self._delivery = delivery or Delivery(source, ingest)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thermocline-producer", daemon=True)
        self.store_needed = False
        """An error handed back can still be retried: the store stays open until then."""

    def start(self) -> None:
        self._thread.start()

    def give_up(self) -> None:
        """Hand back what cannot be sent at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._send_all()
        except Exception as exc:  # nobody would send what is put from now on
            error = ThermoclineError(f"the Producer's thread ended with {self._buffer.events} events: {exc!r}")
            error.__cause__ = exc
            self._buffer.fail([], error)
            self._buffer.close()
        finally:
            self._drop_appender()

    def _drop_appender(self) -> None:
        self._delivery.drop()

    def _send_all(self) -> None:
        chunks = self._chunks()
        for chunk in chunks:
            try:
                left = self._deliver(chunk)
            except Exception as exc:  # a fault of ours must neither lose events nor end the thread
                self._drop_appender()
                error = ThermoclineError(f"internal error; the events may be stored: {exc!r}")
                error.__cause__ = exc
                self._hand_back(chunk, error)
                continue
            if left is not None:
                self._leave(left, [block for later in chunks for block in later])

    def _chunks(self) -> Iterator[list[Block]]:
        """Blocks to send together, until the buffer is closed and empty. Asking for the next one means that one is done with."""
        while (taken := self._buffer.take()) is not None:
            chunk: list[Block] = []
            size = 0
            for conversation_id, lines in taken.lines.items():
                for block in self._blocks(conversation_id, lines):
                    if chunk and (len(chunk) == BLOCKS_MAX or size + len(block.payload) > ROUND_BYTES_MAX):
                        yield chunk
                        chunk, size = [], 0
                    chunk.append(block)
                    size += len(block.payload)
            yield chunk
            self._buffer.finish(taken.number)

    def _blocks(self, conversation_id: str, lines: Sequence[Line]) -> Iterator[Block]:
        limits = self._buffer.limits
        shards = self._source.settings.hot.shards
        return blocks_of(conversation_id, lines, shards=shards, events_max=limits.full_events, bytes_max=limits.full_bytes)

    def _deliver(self, blocks: list[Block]) -> Sending | None:
        """None when every event has its outcome; else it was told to give up, and this is left."""
        sending, pause_s = Sending(blocks), PAUSE_FIRST_S
        while not self._stop.is_set():
            try:
                self._attempt(sending)
            except Unresolved as exc:
                self._buffer.trouble = TierUnavailable(f"Redis stopped answering ({exc.reason})")
                continue
            again = self._sort(sending)
            if not again:
                self._buffer.trouble = None
                return None
            sending = Sending(again)
            if isinstance(self._buffer.trouble, Backpressure):
                self._stop.wait(pause_s)
                pause_s = min(PAUSE_MAX_S, pause_s * 2)
        return sending

    def _attempt(self, sending: Sending) -> None:
        self._delivery.stop = self._stop
        self._delivery.attempt(sending)

    def _sort(self, sending: Sending) -> list[Block]:
        """Let go of what has its outcome; the blocks to send again, in order."""
        again: list[Block] = []
        for block, outcome in zip(sending.blocks, sending.result(), strict=True):
            if isinstance(outcome, Stored):
                self._release(block)
            elif isinstance(outcome, ClockAhead):
                again += self._without_late(block, outcome)
            elif isinstance(outcome, Backpressure | TierUnavailable):
                self._buffer.trouble = outcome
                again.append(block)
            else:
                self._hand_back([block], outcome)
        return again

    def _without_late(self, block: Block, error: ClockAhead) -> list[Block]:
        """The block again without the events that are too far in the future, which are handed back."""
        late = late_ordinals(block, error)
        if not late:  # an earlier block of its conversation had them
            return [block]
        lines = block.payload.split(b"\n")
        self._buffer.fail(events_at(block, late), error)
        self._buffer.release(len(late), sum([len(lines[ordinal]) for ordinal in late]))
        rest = without(block, set(late))
        return [] if rest is None else [rest]

    def _release(self, block: Block) -> None:
        self._buffer.release(block.lines, len(block.payload) - block.lines + 1)

    def _hand_back(self, blocks: Sequence[Block], error: ThermoclineError) -> None:
        self._buffer.fail([event for block in blocks for event in events_of(block)], error)
        for block in blocks:
            self._release(block)

    def _leave(self, sending: Sending, later: list[Block]) -> None:
        """Hand back all that is left. What is in doubt can still be settled by the error's retry, which also sends the rest."""
        if not sending.in_doubt or self._delivery.appender is None:
            error = self._buffer.trouble or TierUnavailable("the Producer was closed before they could be sent")
            self._hand_back([*sending.blocks, *later], error)
            return
        appender, self._delivery.appender = self._delivery.appender, None
        appender.disconnect()
        sending.extend(later)
        self.store_needed = True
        reason = self._buffer.trouble or TierUnavailable("no reply")
        events, error = Call.left_over(sending, appender, reason, deadline_s=self._ingest.deadline_s, give_back=self._done_with)
        self._buffer.fail(events, error)

    def _done_with(self, appender: Appender) -> None:
        appender.close()
        self._source.close()
