"""Brings blocks to their outcomes with an Appender that is made when it is needed and dropped when it cannot be used again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from thermocline.config import IngestSettings
from thermocline.errors import ThermoclineError

from .appender import Appender
from .numbering import Numbering
from .sending import Sending
from .source import Source

TRY_S = 1.0
"""How long the appender tries before it says what is in the way; then it is told to go on."""
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0

Note = Callable[[str, str, Sending], object]


class Delivery:
    """One thread's at a time. `stop` ends its pauses, and belongs to whoever uses it at the moment."""

    def __init__(self, source: Source, ingest: IngestSettings) -> None:
        self._source = source
        self._ingest = ingest
        self.stop = threading.Event()
        self.appender: Appender | None = None
        self._incarnation = ""

    def attempt(self, sending: Sending, *, note: Note | None = None) -> None:
        """Bring `sending` to an end, or to the next second. Unresolved when a block may be stored."""
        try:
            if self.appender is None:
                session = self._source.session()
                session.incarnation = self._incarnation if note else ""
                self.appender = Appender(
                    session,
                    unacked_blocks_max=self._ingest.unacked_blocks_max,
                    reconfirm=self._source.reconfirm,
                    pause=self._pause,
                )
        except ThermoclineError as exc:  # the store cannot be opened
            sending.fail(exc)
            self.stop.wait(PAUSE_MAX_S)
            return
        self.appender.note = note
        self.appender.resume(sending, deadline_s=TRY_S)
        self._incarnation = self.appender.incarnation or self._incarnation
        if not self.appender.usable:
            self.drop()

    def go_on_as(self, producer: str, incarnation: str, lasts: Mapping[int, int]) -> None:
        """Use an appender that has this producer id, and has shard → last number acknowledged. ThermoclineError: not now."""
        if self.appender is not None and self.appender.producer == producer:
            return
        self.drop()
        numbering = Numbering(producer)
        for shard, last in lasts.items():
            numbering.resume(shard, last, time.monotonic())
        self.appender = Appender.resumed(
            self._source.session(), numbering, incarnation, reconfirm=self._source.reconfirm, pause=self._pause
        )

    def _pause(self, seconds: float) -> bool:
        return self.stop.wait(seconds)

    def drop(self) -> None:
        appender, self.appender = self.appender, None
        if appender is not None:
            appender.close()
