"""What the clients do: `python -m tests.history.clients FOLDER SEED FIRST COUNT RATE`.

One process, COUNT threads that share a Client and a Store; each has a Producer and a journal of its own, and is called FIRST,
FIRST + 1 … Each makes RATE calls a second at most, chosen by the seed, until FOLDER/stop exists. A third of the events are so old
that they are archived as soon as they have settled, so that the events of most conversations are in all tiers.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.chaos.roles import settings_of
from tests.waiting import Pace
from thermocline.errors import (
    Backpressure,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    SequenceConflict,
    ThermoclineError,
    TierUnavailable,
)
from thermocline.event import Event
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.query.result import Result
from thermocline.store import Store, connect

from .journal import Attempt, Journal, Known
from .record import Read, Row, Total, digest

GENERATION_S = 25
CONVERSATIONS = 10
"""Of one generation; then come new ones, so that none grows without end."""
MANY_MAX = 30
OLD_SHARE = 1 / 3
DAY_US = 86_400_000_000
OLD_DAYS = (9, 12)
RESOLVE_S = 20
"""How long a client tries to learn what became of an append."""
REFUSALS = (TierUnavailable, Backpressure, InvalidEvent)
"""Certainly not stored. InvalidEvent: its timestamp is too far ahead of Redis' clock, which jumped."""


class Caller:
    """One client: makes calls one after the other, and writes down what came of them."""

    def __init__(self, folder: Path, number: int, seed: int, client: Client, store: Store, rate: float) -> None:
        self._folder, self._client, self._store = folder, client, store
        self._producer = Producer(store.settings, tiers=store.tiers)
        self._dice = random.Random(f"{seed}:{number}")
        self._journal = Journal(folder, number)
        self._pace = Pace(rate)
        self._number = number
        self._made = 0
        self._start_ns = int((folder / "start").read_text())
        self._calls: list[tuple[Callable[[], None], int]] = [
            (self._append, 30),
            (self._append_many, 12),
            (self._produce, 10),
            (self._append_expecting, 12),
            (self._recent, 16),
            (self._history, 10),
            (self._count, 6),
            (self._total, 4),
        ]

    def run(self) -> None:
        calls, weights = zip(*self._calls, strict=True)
        while not (self._folder / "stop").exists():
            self._pace.wait(1)
            self._safely(self._dice.choices(calls, weights)[0])
        self._safely(self._close)
        self._journal.write(done=True)

    def _close(self) -> None:
        """What is handed back now belongs to calls that ended in not knowing."""
        with suppress(PartialAppend, TierUnavailable, Backpressure):
            self._producer.close()

    def _safely(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # whatever no call may end with: the run goes on, and fails
            self._journal.write(broken=traceback.format_exc()[-2000:])

    # Appends

    def _append(self) -> None:
        [event] = self._events(1)
        call = self._journal.invoke("append", [_attempt(event)])
        self._journal.end(call, self._one(event, None))

    def _append_expecting(self) -> None:
        """Read the last seq and append on that condition: a compare-and-set, in competition with everybody else."""
        [event] = self._events(1)
        rows = self._rows("recent", event.conversation_id, 1)
        if rows is None:
            return
        expected_seq = rows[-1][0] if rows else 0
        call = self._journal.invoke("append expecting", [_attempt(event, expected_seq)])
        self._journal.end(call, self._one(event, expected_seq))

    def _one(self, event: Event, expected_seq: int | None) -> list[Known]:
        invoked_ns = time.monotonic_ns()
        try:
            receipt = self._client.append(
                event.conversation_id, event.event_type, event.content, timestamp=event.timestamp, expected_seq=expected_seq
            )
            return [("ok", receipt.seq)]
        except SequenceConflict as exc:
            self._note_conflict(event.conversation_id, invoked_ns, exc)
            return [("failed", None)]
        except (*REFUSALS, OutcomeUnknown) as exc:
            return self._resolved([event], exc)

    def _append_many(self) -> None:
        events = self._events(self._dice.randint(2, MANY_MAX))
        call = self._journal.invoke("append_many", [_attempt(event) for event in events])
        try:
            known: list[Known] = [("ok", receipt.seq) for receipt in self._client.append_many(events)]
        except PartialAppend as exc:
            known = self._after_partial(exc)
        except REFUSALS:
            known = [("failed", None)] * len(events)
        self._journal.end(call, known)

    def _produce(self) -> None:
        """Put events into the Producer, and flush: from then on they count as stored, without a receipt."""
        events = self._events(self._dice.randint(1, MANY_MAX))
        call = self._journal.invoke("Producer", [_attempt(event) for event in events])
        known: dict[str, Known] = {str(event.content): ("ok", None) for event in events}
        for event in events:
            self._handed_back(known, lambda event=event: self._put(event, known))  # type: ignore[misc]
        give_up_s = time.monotonic() + RESOLVE_S
        while not self._handed_back(known, lambda: self._producer.flush(2)):
            if time.monotonic() > give_up_s:  # they stay buffered, and may be stored later
                known = {content: ("unknown", None) if one[0] == "ok" else one for content, one in known.items()}
                break
        self._journal.end(call, list(known.values()))

    def _put(self, event: Event, known: dict[str, Known]) -> None:
        try:
            self._producer.append(event.conversation_id, event.event_type, event.content, timestamp=event.timestamp)
        except (Backpressure, InvalidEvent):
            known[str(event.content)] = ("failed", None)
        except PartialAppend:
            known[str(event.content)] = ("failed", None)  # this one was not taken; those handed back were before it
            raise

    def _handed_back(self, known: dict[str, Known], act: Callable[[], None]) -> bool:
        """Whether the Producer did it; what it hands back is noted in `known`, as far as it is of this call."""
        try:
            act()
        except PartialAppend as exc:
            for event, one in zip(exc.rest, self._resolved(exc.rest, exc.cause), strict=True):
                if str(event.content) in known:
                    known[str(event.content)] = one
            return False
        except (TierUnavailable, Backpressure):
            return False
        return True

    def _after_partial(self, partial: PartialAppend) -> list[Known]:
        rest = iter(self._resolved(partial.rest, partial.cause))
        return [("ok", receipt.seq) if receipt is not None else next(rest) for receipt in partial.receipts]

    def _resolved(self, events: list[Event], cause: ThermoclineError) -> list[Known]:
        """What became of events that have no receipt. By the dice: try again until it is known, ask, or never learn it."""
        if not isinstance(cause, OutcomeUnknown):
            if not isinstance(cause, REFUSALS):
                raise cause
            return [("failed", None)] * len(events)
        way = self._dice.random()
        if way < 0.25:
            return [("unknown", None)] * len(events)
        give_up_s = time.monotonic() + RESOLVE_S
        while time.monotonic() < give_up_s:
            try:
                if way < 0.5:
                    stored = cause.was_stored()
                    some = "failed" if len(events) == 1 else "unknown"  # of several some may be stored
                    return [("ok" if stored else some, None)] * len(events)  # type: ignore[list-item]
                return [("ok", receipt.seq) for receipt in cause.retry()]
            except OutcomeUnknown as exc:
                cause = exc
            except PartialAppend as exc:
                return self._after_partial(exc)
            except SequenceConflict:
                return [("failed", None)]
            except REFUSALS:
                if way < 0.5:
                    continue  # it could not be asked
                return [("failed", None)] * len(events)
        return [("unknown", None)] * len(events)

    def _note_conflict(self, conversation: str, invoked_ns: int, exc: SequenceConflict) -> None:
        if exc.last_seq == exc.expected_seq:
            self._journal.write(broken=f"a conflict without cause: {exc}")
        self._note(Read, kind="conflict", conversation=conversation, invoked_ns=invoked_ns, last=exc.last_seq)

    # Reads

    def _recent(self) -> None:
        self._rows("recent", self._conversation(), self._dice.choice((1, 5, 40)))

    def _history(self) -> None:
        self._rows("history", self._conversation(), 0)

    def _rows(self, kind: str, conversation: str, limit: int) -> list[Row] | None:
        """What is there, noted; None when it cannot be read now."""
        invoked_ns = time.monotonic_ns()
        query = "SELECT seq, content FROM events WHERE conversation_id = ? ORDER BY seq"
        try:
            found = self._store.recent(conversation, limit) if limit else self._store.sql(query, [conversation])
        except TierUnavailable as exc:
            self._journal.write(kind=kind, unavailable=str(exc)[:300])
            return None
        table = found.to_arrow()
        rows = list(zip(table.column("seq").to_pylist(), table.column("content").to_pylist(), strict=True))
        first, last = (rows[0][0], rows[-1][0]) if rows else (0, 0)
        place = {"kind": kind, "conversation": conversation, "limit": limit}
        told = {"rows": len(rows), "first": first, "last": last, "digest": digest(rows)}
        self._note(Read, found, invoked_ns=invoked_ns, **place, **told)
        return rows

    def _count(self) -> None:
        conversation = self._conversation()
        invoked_ns = time.monotonic_ns()
        try:
            found = self._store.sql("SELECT count(*) FROM events WHERE conversation_id = ?", [conversation])
        except TierUnavailable as exc:
            self._journal.write(kind="count", unavailable=str(exc)[:300])
            return
        [(rows,)] = found.fetchall()
        self._note(Read, found, kind="count", conversation=conversation, invoked_ns=invoked_ns, rows=rows)

    def _total(self) -> None:
        invoked_ns = time.monotonic_ns()
        try:
            found = self._store.sql("SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events")
        except TierUnavailable as exc:
            self._journal.write(kind="total", unavailable=str(exc)[:300])
            return
        [(rows, distinct)] = found.fetchall()
        self._note(Total, found, invoked_ns=invoked_ns, rows=rows, distinct=distinct)

    def _note(self, what: type[Read | Total], found: Result | None = None, /, **told: Any) -> None:
        """Write down a read that has ended. What it was told is whole in `found` already: a later end would only be laxer."""
        noted = what(client=self._number, ended_ns=time.monotonic_ns(), **told)
        tiers = ""
        if found is not None:
            on = found.coverage
            tiers = "".join(
                "hwcR"[place] for place, rows in enumerate((on.hot_rows, on.warm_rows, on.cold_rows, on.cached_rows)) if rows
            )
        if isinstance(noted, Read):
            self._journal.write(read=noted, tiers=tiers)
        else:
            self._journal.write(total=noted, tiers=tiers)

    # What they are about

    def _conversation(self, *, writing: bool = False) -> str:
        newest = (time.monotonic_ns() - self._start_ns) // (GENERATION_S * 10**9)
        generation = newest if writing or self._dice.random() < 0.7 else self._dice.randint(0, newest)
        return f"g{generation}-{self._dice.randrange(CONVERSATIONS)}"

    def _events(self, count: int) -> list[Event]:
        names = [self._conversation(writing=True) for _ in range(min(count, 3))]
        events = []
        for _ in range(count):
            self._made += 1
            at_us = None
            if self._dice.random() < OLD_SHARE:
                at_us = time.time_ns() // 1000 - self._dice.randint(*OLD_DAYS) * DAY_US
            content = f"{self._number}:{self._made}"
            events.append(
                Event(conversation_id=self._dice.choice(names), event_type="history.event", content=content, timestamp=at_us)
            )
        return events


def _attempt(event: Event, expected_seq: int | None = None) -> Attempt:
    return event.conversation_id, str(event.content), expected_seq


def main() -> None:
    folder = Path(sys.argv[1])
    seed, first, count = map(int, sys.argv[2:5])
    rate = float(sys.argv[5])
    settings = settings_of(folder)
    with connect(settings) as store, Client(settings, tiers=store.tiers) as client:
        callers = [Caller(folder, first + number, seed, client, store, rate) for number in range(count)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        (folder / f"clients-{first}.ready").touch()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
