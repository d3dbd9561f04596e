"""Read the next batch to settle while the one before it is being written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import msgspec

from thermocline.config import Settings
from thermocline.errors import ThermoclineError
from thermocline.tiers.hot import Hot, ShardCut
from thermocline.tiers.ledger import ShardState

from .log_batch import Batch, read_batch


class ReadAhead:
    """Batches of one namespace, one after the other. Holds at most one more than was asked for; not thread-safe."""

    def __init__(self, hot: Hot, settings: Settings) -> None:
        self._hot = hot
        self._settings = settings
        self._first_shard = 0
        self._next: _Reading | None = None

    def batch(self, incarnation: str, states: Sequence[ShardState], upto: Sequence[ShardCut]) -> Batch:
        """The blocks after `states` up to `upto`, or as many as fit, and what comes after them begun.

        What was read ahead is used when it starts where `states` are, else it is read anew. `upto` never goes back in one
        incarnation and era, so what was read up to an earlier one is good for a later one. Errors are those of `read_batch`.
        """
        start = _start(incarnation, states)
        ahead, self._next = self._next, None
        found = ahead.result() if ahead is not None and ahead.start == start else None
        if found is None or not found.events:
            found = self._read(states, upto)
        rest = [_moved(state, found) for state in states]
        if any(cut.last > state.position for cut, state in zip(upto, rest, strict=True)):
            self._next = _Reading(_start(incarnation, rest), lambda: self._read(rest, upto))
        return found

    def _read(self, states: Sequence[ShardState], upto: Sequence[ShardCut]) -> Batch:
        first, self._first_shard = self._first_shard, (self._first_shard + 1) % len(upto)
        warm = self._settings.warm
        return read_batch(
            self._hot,
            states,
            upto,
            first_shard=first,
            events_max=warm.settle_batch_events,
            bytes_max=warm.settle_batch_bytes,
            page_bytes_max=self._settings.hot.page_bytes_max,
        )


class _Reading:
    """A batch being read by a thread of its own."""

    def __init__(self, start: object, read: Callable[[], Batch]) -> None:
        self.start = start
        self._read = read
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._run, name="thermocline-read-ahead", daemon=True)
        self._thread.start()

    def result(self) -> Batch | None:
        """The batch; None when it could not be read: reading it again tells why."""
        self._thread.join()
        return self._batch

    def _run(self) -> None:
        try:
            self._batch = self._read()
        except ThermoclineError:
            self._batch = None


def _start(incarnation: str, states: Sequence[ShardState]) -> object:
    return incarnation, [(state.shard, state.era, state.position, state.events, state.bytes) for state in states]


def _moved(state: ShardState, batch: Batch) -> ShardState:
    """The state after the batch, as far as reading on goes."""
    end = batch.reached.get(state.shard)
    if end is None:
        return state
    return msgspec.structs.replace(state, position=end.position, events=end.events, bytes=end.bytes)
