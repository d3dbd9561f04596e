"""One call of append or append_many: its events, their blocks, and the receipts or the error it ends with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise

import msgspec

from thermocline.errors import ConfigError, InvalidEvent, OutcomeUnknown, PartialAppend, ThermoclineError, TierUnavailable
from thermocline.event import Event, Receipt
from thermocline.tiers.block import Block, derived_event_id

from .appender import Appender, Unresolved
from .encode import events_of, timestamps_of
from .numbering import DOUBT_MAX_S
from .pool import Pool
from .sending import ClockAhead, Outcome, Sending, Stored


class Parcel:
    """Blocks, and which event each of their lines is."""

    def __init__(self, blocks: Sequence[Block], places: Sequence[Sequence[int]]) -> None:
        """places  per block, the index of the event of each line"""
        self.blocks = blocks
        self.places = places
        self.count = sum(map(len, places))

    def receipts(self, outcomes: Sequence[Outcome | None], durability: str) -> list[Receipt | None]:
        """One receipt per event, in the events' order; None for those not known to be stored."""
        receipts: list[Receipt | None] = [None] * self.count
        for block, places, outcome in zip(self.blocks, self.places, outcomes, strict=True):
            if isinstance(outcome, Stored):
                for place, receipt in zip(places, _receipts(block, outcome, durability), strict=True):
                    receipts[place] = receipt
        return receipts

    def error(self, outcomes: Sequence[Outcome | None], rest: Sequence[int]) -> ThermoclineError:
        """Why the first block that holds one of `rest` was not stored; an event's own fault names its place in `rest`."""
        wanted = {place: index for index, place in enumerate(rest)}
        for block, places, outcome in zip(self.blocks, self.places, outcomes, strict=True):
            if isinstance(outcome, ThermoclineError) and not wanted.keys().isdisjoint(places):
                if not isinstance(outcome, ClockAhead) or self.count == 1:
                    return outcome
                late = [place for place, at_us in zip(places, timestamps_of(block), strict=True) if at_us > outcome.latest_us]
                return InvalidEvent(outcome.field, outcome.problem, index=wanted.get((late or places)[0]))
        raise AssertionError("an event without receipt is in a block with an error")


class Call:
    """Events on their way to one end: receipts, or the error that `append` and `append_many` document. Thread-safe."""

    def __init__(
        self, parcel: Parcel, events: Sequence[Event], *, deadline_s: float, sending: Sending | None = None, now_us: int = 0
    ) -> None:
        """events   those of `parcel`, for the error's rest; empty for a single append, whose error needs none
        sending  of `parcel`, to go on from
        now_us   the timestamp that those without one were given
        """
        self._parcel = parcel
        self._events = events
        self._deadline_s = deadline_s
        self._now_us = now_us
        self._sending = Sending(parcel.blocks) if sending is None else sending
        self._durability = ""
        self._doubt_s = 0.0
        """When it first was not known whether something is stored."""
        self._appender: Appender | None = None
        self._give_back: Callable[[Appender], None] = Appender.close
        self._lock = threading.Lock()

    def run(self, pool: Pool) -> list[Receipt]:
        """Send everything; one receipt per event, or the error."""
        return self.finish(pool, pool.borrow())

    def finish(self, pool: Pool, appender: Appender, *, tried_s: float = 0.0) -> list[Receipt]:
        """`run` with an appender of the pool's that the caller has borrowed, and has tried with for so long."""
        everything = range(self._parcel.count)
        try:
            appender.resume(self._sending, deadline_s=max(0.0, self._deadline_s - tried_s))
        except BaseException as exc:
            pool.discard(appender)
            if not isinstance(exc, Unresolved):
                raise
            self._appender, self._give_back, self._durability = appender, pool.adopt, appender.durability
            return self._end(everything, exc)
        self._durability = appender.durability
        pool.give_back(appender)
        return self._end(everything)

    def _retry(self, scope: Sequence[int]) -> list[Receipt]:
        """Go on where the reply was lost; ends like `run`, for the events in `scope` alone. May be called again."""
        with self._lock:
            if self._appender is not None:
                try:
                    self._require_remembered()
                    self._appender.resume(self._sending, deadline_s=self._deadline_s)
                except Unresolved as exc:
                    self._appender.disconnect()
                    return self._end(scope, exc)
                self._durability = self._appender.durability
                self._give_back(self._appender)
                self._appender = None
            return self._end(scope)

    def _look(self, scope: Sequence[int]) -> bool:
        """Whether all events in `scope` are stored. OutcomeUnknown: still not known."""
        with self._lock:
            if self._appender is not None:
                try:
                    self._require_remembered()
                    self._appender.look(self._sending, deadline_s=self._deadline_s)
                except Unresolved as exc:
                    self._appender.disconnect()
                    raise self._unknown(scope, exc.reason) from exc
                self._durability = self._appender.durability
                if self._sending.unfinished:
                    self._appender.disconnect()
                else:
                    self._give_back(self._appender)
                    self._appender = None
            receipts = self._parcel.receipts(self._sending.outcomes, self._durability)
            return all(receipts[place] is not None for place in scope)

    def _require_remembered(self) -> None:
        """Unresolved when it is so long ago that Redis may have forgotten the numbers."""
        if self._sending.in_doubt and time.monotonic() - self._doubt_s > DOUBT_MAX_S:
            reason = TierUnavailable("it is more than 7 days ago, and Redis does not remember: look for the event by SQL")
            raise Unresolved(self._sending, reason)

    @classmethod
    def left_over(
        cls,
        sending: Sending,
        appender: Appender,
        reason: BaseException,
        *,
        deadline_s: float,
        give_back: Callable[[Appender], None],
    ) -> tuple[list[Event], OutcomeUnknown]:
        """The events that a Sending has not brought to an end, and the error whose `retry` does.

        give_back  gets the appender when it is done
        """
        places = count_up([block.lines for block in sending.blocks])
        events = [event for block in sending.blocks for event in events_of(block)]
        call = cls(Parcel(sending.blocks, places), events, deadline_s=deadline_s)
        call._sending, call._appender, call._give_back = sending, appender, give_back
        rest = [place for group, outcome in zip(places, sending.outcomes, strict=True) if outcome is None for place in group]
        return [events[place] for place in rest], call._unknown(rest, reason)

    def _end(self, scope: Sequence[int], unresolved: Unresolved | None = None) -> list[Receipt]:
        everyone = self._parcel.receipts(self._sending.outcomes, self._durability)
        receipts = [everyone[place] for place in scope]
        stored = [receipt for receipt in receipts if receipt is not None]
        if len(stored) == len(receipts):
            return stored
        rest_indices = [index for index, receipt in enumerate(receipts) if receipt is None]
        rest = [scope[index] for index in rest_indices]
        cause = self._parcel.error(self._sending.outcomes, rest) if unresolved is None else self._unknown(rest, unresolved.reason)
        if not self._events or (not stored and isinstance(cause, InvalidEvent | ConfigError)):
            raise cause
        raise PartialAppend(
            f"{len(stored)} of {len(receipts)} events are stored, the rest is not or may not be: {cause}",
            receipts=receipts,
            rest=[self._dated(self._events[place]) for place in rest],
            rest_indices=rest_indices,
            cause=cause,
        ) from cause

    def _dated(self, event: Event) -> Event:
        """The event with the time it was given at first: that is when it happened, however late it is stored."""
        return event if event.timestamp is not None else msgspec.structs.replace(event, timestamp=self._now_us)

    def _unknown(self, rest: Sequence[int], reason: BaseException) -> OutcomeUnknown:
        self._doubt_s = self._doubt_s or time.monotonic()
        subject = "the event" if len(rest) == 1 else f"up to {len(rest):,} events"
        error = OutcomeUnknown(
            f"{subject} may be stored: the reply was lost ({reason}); call retry() on this error, "
            "which cannot store anything twice, or was_stored(): a fresh append can",
            retry=lambda: self._retry(rest),
            look=lambda: self._look(rest),
        )
        error.__cause__ = reason
        return error


def append_one(block: Block, expected_seq: int | None, pool: Pool, *, deadline_s: float) -> Receipt:
    """The receipt of the one event of `block`, or the error; a Call is only made when one round trip does not do."""
    appender = pool.borrow()
    begin_s = time.monotonic()
    try:
        found = appender.try_one(block, expected_seq, deadline_s=deadline_s)
    except BaseException:
        pool.discard(appender)
        raise
    if isinstance(found, Stored):
        durability = appender.durability
        pool.give_back(appender)
        return _receipts(block, found, durability)[0]
    call = Call(Parcel([block], [[0]]), [], deadline_s=deadline_s, sending=found)
    return call.finish(pool, appender, tried_s=time.monotonic() - begin_s)[0]


def count_up(sizes: Iterable[int]) -> list[range]:
    """Consecutive ranges of these sizes, from 0."""
    ends = list(accumulate(sizes, initial=0))
    return [range(start, end) for start, end in pairwise(ends)]


def _receipts(block: Block, stored: Stored, durability: str) -> list[Receipt]:
    if block.lines == 1 and not (block.event_ids or stored.skipped):
        event_id = derived_event_id(block.block_id, 0)
        return [Receipt(event_id=event_id, conversation_id=block.conversation_id, seq=stored.seq_first, durability=durability)]
    given = dict(block.event_ids)
    receipts = []
    seq = stored.seq_first
    for ordinal in range(block.lines):
        first_copy = stored.skipped.get(ordinal)
        receipts.append(
            Receipt(
                event_id=given.get(ordinal) or derived_event_id(block.block_id, ordinal),
                conversation_id=block.conversation_id,
                seq=seq if first_copy is None else first_copy,
                durability=durability,
                duplicate=first_copy is not None,
            )
        )
        seq += first_copy is None
    return receipts
