"""Append a stream of NDJSON lines: batch by batch, waiting when the store sheds load, naming the line where it stops.

A batch is what is there to read, up to a bound, so that a live pipe is appended as it comes and a file in large calls.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from io import RawIOBase
from typing import Final, NamedTuple, Protocol

import msgspec

from thermocline.errors import Backpressure, InvalidEvent, OutcomeUnknown, PartialAppend, ThermoclineError, TierUnavailable
from thermocline.event import Event, Receipt
from thermocline.ingest.line import line_of
from thermocline.ingest.validate import check_conversation_id, fields_of
from thermocline.ndjson import LINE_BYTES_MAX, parse_line

BATCH_LINES_MAX: Final = 5_000
BATCH_BYTES_MAX: Final = 16 << 20
READ_BYTES: Final = 1 << 20
IDLE_S: Final = 0.2
"""How long a pipe may be silent before what came is appended."""
STALLED_S_MAX: Final = 60.0
"""How long to go on asking a store that sheds load."""

MAY_PASS: Final = (Backpressure, OutcomeUnknown, TierUnavailable)
"""What an append is tried again after."""


class Numbered(NamedTuple):
    """A line of the input and its number, from 1."""

    number: int
    line: bytes


class Rejected(NamedTuple):
    """A line that cannot be appended, and why."""

    number: int
    line: bytes
    reason: str


class Fed(msgspec.Struct, kw_only=True):
    """What has happened so far."""

    bytes_read: int = 0
    lines: int = 0
    """Lines dealt with, the empty ones included."""
    appended: int = 0
    duplicates: int = 0
    """Of `appended`, events whose id the conversation had already: no second copy was stored."""
    rejected: int = 0
    waiting: str = ""
    """Why nothing moves right now; empty when it does."""


class StoppedAt(ThermoclineError):
    """A line could not be appended, and neither could what follows it in its conversation."""

    def __init__(self, number: int, reason: str, *, appended: int) -> None:
        self.number = number
        self.reason = reason
        stored = "1 event is stored" if appended == 1 else f"{appended:,} events are stored"
        super().__init__(f"line {number}: {reason}; {stored}")


class Appends(Protocol):
    """What of ingest.append.Client is needed here."""

    def append_many(self, events: Sequence[Event], /) -> list[Receipt]: ...


def feed(
    client: Appends,
    stream: RawIOBase,
    *,
    reject: Callable[[Rejected], None] | None = None,
    progress: Callable[[Fed], None] = lambda fed: None,
) -> Fed:
    """What became of the lines of `stream`, once it ends.

    reject    takes each line that cannot be an event, and the rest goes on; None: the first such line ends it with StoppedAt
    progress  called after every batch, and when the store sheds load

    StoppedAt also ends it when the store cannot take a line for STALLED_S_MAX, or at all. Errors of opening the store come as
    they are. Lines of one conversation keep their order.
    """
    feeder = _Feeder(client, reject, progress)
    for batch in batches(stream):
        feeder.take(batch)
    return feeder.fed


def batches(stream: RawIOBase) -> Iterator[list[Numbered]]:
    """The lines of an unbuffered stream, without their newlines. Of a line beyond LINE_BYTES_MAX one byte more is kept."""
    batch: list[Numbered] = []
    number = size = 0
    partial = b""
    while chunk := stream.read(READ_BYTES):
        *lines, last = (partial + chunk).split(b"\n")
        partial = last[: LINE_BYTES_MAX + 1]
        for line in lines:
            number += 1
            batch.append(Numbered(number, line))
            size += len(line)
            if len(batch) >= BATCH_LINES_MAX or size >= BATCH_BYTES_MAX:
                yield batch
                batch, size = [], 0
        if batch and not select.select([stream], [], [], IDLE_S)[0]:
            yield batch
            batch, size = [], 0
    if partial:
        batch.append(Numbered(number + 1, partial))
    if batch:
        yield batch


class _Feeder:
    def __init__(self, client: Appends, reject: Callable[[Rejected], None] | None, progress: Callable[[Fed], None]) -> None:
        self.fed = Fed()
        self._client = client
        self._reject = reject
        self._progress = progress

    def take(self, batch: Sequence[Numbered]) -> None:
        """Append a batch, bad lines apart."""
        lines: list[Numbered] = []
        events: list[Event] = []
        for numbered in batch:
            self.fed.lines += 1
            self.fed.bytes_read += len(numbered.line) + 1
            if not numbered.line.strip():
                continue
            try:
                events.append(parse_line(numbered.line))
                lines.append(numbered)
            except InvalidEvent as exc:
                if self._reject is None:
                    self._send(lines, events)
                self._refuse(numbered, exc)
        self._send(lines, events)
        self._progress(self.fed)

    def _send(self, lines: Sequence[Numbered], events: Sequence[Event]) -> None:
        call: Callable[[], list[Receipt]] | None = None
        moved = time.monotonic()
        while events:
            try:
                self._count(call() if call is not None else self._client.append_many(events))
                return
            except PartialAppend as exc:
                if self._count([receipt for receipt in exc.receipts if receipt is not None]):
                    moved = time.monotonic()
                lines, events, cause = [lines[index] for index in exc.rest_indices], exc.rest, exc.cause
            except InvalidEvent as exc:
                cause = exc
            call = cause.retry if isinstance(cause, OutcomeUnknown) else None
            if isinstance(cause, InvalidEvent):
                lines, events = self._sifted(lines, events, cause)
            elif isinstance(cause, MAY_PASS) and time.monotonic() - moved < STALLED_S_MAX:
                self._wait(cause)
            else:
                raise StoppedAt(lines[0].number, str(cause), appended=self.fed.appended) from cause

    def _sifted(
        self, lines: Sequence[Numbered], events: Sequence[Event], found: InvalidEvent
    ) -> tuple[list[Numbered], list[Event]]:
        """What is left without the event that was found invalid, and without all others that can be seen to be."""
        first = found.index or 0
        if self._reject is None:
            self._send(lines[:first], events[:first])
            self._refuse(lines[first], found)
        kept: tuple[list[Numbered], list[Event]] = ([], [])
        for index, (numbered, event) in enumerate(zip(lines, events, strict=True)):
            problem = found if index == first else _problem(event)
            if problem is not None:
                self._refuse(numbered, problem)
            else:
                kept[0].append(numbered)
                kept[1].append(event)
        return kept

    def _refuse(self, numbered: Numbered, problem: InvalidEvent) -> None:
        reason = f"{problem.field}: {problem.problem}"
        if self._reject is None:
            raise StoppedAt(numbered.number, reason, appended=self.fed.appended) from problem
        self._reject(Rejected(numbered.number, numbered.line, reason))
        self.fed.rejected += 1

    def _count(self, receipts: Sequence[Receipt]) -> int:
        self.fed.appended += len(receipts)
        self.fed.duplicates += sum(receipt.duplicate for receipt in receipts)
        self.fed.waiting = ""
        return len(receipts)

    def _wait(self, cause: ThermoclineError) -> None:
        self.fed.waiting = str(cause)
        self._progress(self.fed)
        time.sleep(cause.retry_after_s if isinstance(cause, Backpressure) else 0.1)


def _problem(event: Event) -> InvalidEvent | None:
    try:
        check(event)
    except InvalidEvent as exc:
        return exc
    return None


def check(event: Event) -> None:
    """Nothing; InvalidEvent if `append_many` would refuse the event as such."""
    check_conversation_id(event.conversation_id)
    line_of(fields_of(event), time.time_ns() // 1000)
