"""What a Producer was given and the store has not acknowledged yet: by conversation, bounded, handed on all at once.

Callers put; one sender takes everything that waits at that moment. What it takes is numbered, so that a flush knows which number
holds the last event it saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Lock
from typing import Any, Final

import msgspec

from thermocline.errors import ThermoclineError
from thermocline.event import Event

from .coalesce import Chunk, mergeable
from .handed_back import Failure, handed_back
from .line import Line


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a Buffer holds, and when what waits is worth sending."""

    events_max: int
    bytes_max: int
    """Like events_max: of all that is not acknowledged. One event always fits."""
    full_events: int
    full_bytes: int
    """Like full_events: when so much waits it is taken before `linger_s` is over."""
    linger_s: float


class Taken(msgspec.Struct, frozen=True):
    """Lines by conversation, in the order put."""

    number: int
    lines: Mapping[str, Sequence[Line]]


class Buffer:
    """Thread-safe. An error that the sender met is raised by the next call of any caller, once."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits: Final = limits
        self.trouble: ThermoclineError | None = None
        """What keeps the sender from sending at the moment; set by it."""
        self._events_max, self._bytes_max = limits.events_max, limits.bytes_max
        self._full_events, self._full_bytes = limits.full_events, limits.full_bytes
        self._clock = clock
        lock = Lock()
        self._lock = lock
        self._filled = Condition(lock)  # the sender waits for it
        self._eased = Condition(lock)  # callers wait for it
        self._waiting: dict[str, list[Line | Chunk]] = {}
        self._waiting_events = self._waiting_bytes = 0
        self._first_s = 0.0
        self._events = self._bytes = 0
        self._number = 1
        self._hurried = self._finished = self._done = 0
        self._closed = False
        self._failures: list[Failure] = []

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def events(self) -> int:
        """Events put and neither stored nor failed."""
        return self._events

    @property
    def failing(self) -> bool:
        """Something was handed back that nobody has been told yet."""
        return bool(self._failures)

    def put(self, conversation_id: str, line: Line, wait_s: float, chunk: Mapping[str, Any] | None = None) -> bool:
        """Take an event; False when there was no room for so long.

        chunk  the event's values, if it may be merged with its neighbours
        """
        size = len(line.payload)
        with self._lock:
            if self._failures or self._closed or not self._has_room(size):
                self._eased.wait_for(lambda: self._failures or self._closed or self._has_room(size), wait_s)
                self._raise_failure()
                if self._closed:
                    raise ThermoclineError("this Producer is closed: make a new one")
                if not self._has_room(size):
                    return False
            lines = self._waiting.get(conversation_id)
            if lines is None:
                lines = self._waiting[conversation_id] = []
            self._bytes += size
            waiting_bytes = self._waiting_bytes = self._waiting_bytes + size
            if chunk is not None and self._merged(lines, chunk):
                return True
            lines.append(line if chunk is None or not mergeable(chunk) else self._chunk(chunk, size))
            self._events += 1
            waiting_events = self._waiting_events = self._waiting_events + 1
            if waiting_events == 1:
                self._first_s = self._clock()
                self._filled.notify()
            elif waiting_events == self._full_events or 0 <= waiting_bytes - self._full_bytes < size:
                self._filled.notify()
        return True

    def _has_room(self, size: int) -> bool:
        return self._events < self._events_max and (self._bytes + size <= self._bytes_max or self._events == 0)

    def _chunk(self, values: Mapping[str, Any], size: int) -> Chunk:
        return Chunk(values, until_s=self._clock() + self.limits.linger_s, line_bytes=size)

    def _merged(self, lines: list[Line | Chunk], values: Mapping[str, Any]) -> bool:
        last = lines[-1] if lines else None
        if not isinstance(last, Chunk) or not mergeable(values):
            return False
        return last.merge(values, self._clock(), bytes_max=self._full_bytes)

    def flush(self, timeout_s: float | None, patience_s: float) -> bool:
        """Like `wait`, then raise what the sender met."""
        done = self.wait(timeout_s, patience_s)
        self.raise_failure()
        return done

    def wait(self, timeout_s: float | None, patience_s: float) -> bool:
        """Hurry what was put before this call and wait until each has its outcome; False when that took too long.

        timeout_s  for everything; None: go on while something gets its outcome at least every `patience_s`
        """
        with self._lock:
            upto = self._number if self._waiting else self._number - 1
            self._hurried = max(self._hurried, upto)
            self._filled.notify()
            deadline_s = self._clock() + (patience_s if timeout_s is None else timeout_s)
            done = self._done
            while self._finished < upto:
                if timeout_s is None and self._done != done:
                    done, deadline_s = self._done, self._clock() + patience_s
                left_s = deadline_s - self._clock()
                if left_s <= 0:
                    return False
                self._eased.wait(left_s)
            return True

    def raise_failure(self) -> None:
        """Raise what the sender met, if anything and not raised yet."""
        with self._lock:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failures:
            failures, self._failures = self._failures, []
            raise handed_back(failures)

    def close(self) -> None:
        """Take no more events; the sender gets what is there, then None."""
        with self._lock:
            self._closed = True
            self._filled.notify()
            self._eased.notify_all()

    # What follows is for the sender.

    def take(self) -> Taken | None:
        """Everything that waits, once it is enough or its first event is due; None when closed and empty."""
        with self._lock:
            while not self._waiting:
                if self._closed:
                    return None
                self._filled.wait()
            due_s = self._first_s + self.limits.linger_s
            while not self._is_due():
                left_s = due_s - self._clock()
                if left_s <= 0:
                    break
                self._filled.wait(left_s)
            waiting, given_bytes, number = self._waiting, self._waiting_bytes, self._number
            self._waiting = {}
            self._waiting_events = self._waiting_bytes = 0
            self._number += 1
        lines = {name: [item.line() if isinstance(item, Chunk) else item for item in items] for name, items in waiting.items()}
        size = sum([len(line.payload) for group in lines.values() for line in group])
        with self._lock:
            self._bytes += size - given_bytes  # merged chunks have become shorter
        return Taken(number, lines)

    def _is_due(self) -> bool:
        full = self._waiting_events >= self._full_events or self._waiting_bytes >= self._full_bytes
        return full or self._closed or self._number <= self._hurried

    def release(self, events: int, size: int) -> None:
        """So many events and bytes of lines have their outcome."""
        with self._lock:
            self._events -= events
            self._bytes -= size
            self._done += events
            self._eased.notify_all()

    def finish(self, number: int) -> None:
        """All of what was taken as `number` has its outcome."""
        with self._lock:
            self._finished = number
            self._eased.notify_all()

    def fail(self, events: Sequence[Event], cause: ThermoclineError) -> None:
        """Keep `events` for the next caller: they are not stored, because of `cause`."""
        with self._lock:
            self._failures.append((events, cause))
            self._eased.notify_all()
