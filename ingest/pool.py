"""A bounded pool of appenders, the last used first, so that few connections serve a quiet process and many a busy one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from thermocline.errors import Backpressure

from .appender import Appender
from .sending import RETRY_AFTER_S
from .source import Source, inherit


class Pool:
    """Thread-safe. An appender is one thread's at a time; one whose call ended in an exception
    is not used again: what it sent last may be stored under a number it would reuse."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._settings = source.settings.ingest
        self._start()

    def _start(self) -> None:
        self._idle: list[Appender] = []
        self._free = threading.Semaphore(self._settings.sessions_max)
        self._incarnation = ""
        self._closed = False

    @contextmanager
    def borrowed(self) -> Iterator[Appender]:
        """An appender of one's own; waits for one up to the deadline, then Backpressure.

        After any exception it is disconnected and does not come back by itself (Unresolved: `give_back` when resolved).
        """
        if not self._free.acquire(timeout=self._settings.deadline_s):
            problem = f"all {self._settings.sessions_max} connections (ingest.sessions_max) are in use"
            raise Backpressure(problem, retry_after_s=RETRY_AFTER_S)
        try:
            try:
                appender = self._idle.pop()
            except IndexError:
                appender = self.appender()
            try:
                yield appender
            except BaseException:
                appender.disconnect()
                raise
            self.give_back(appender)
        finally:
            self._free.release()

    def appender(self) -> Appender:
        """A new appender. It refuses a store that does not descend from the one the others saw."""
        session = self._source.session()
        session.incarnation = self._incarnation
        return Appender(session, unacked_blocks_max=self._settings.unacked_blocks_max, reconfirm=self._source.reconfirm)

    def give_back(self, appender: Appender) -> None:
        """Make an appender available whose last call ended in outcomes."""
        self._incarnation = appender.incarnation or self._incarnation
        if self._closed or not appender.usable or len(self._idle) >= self._settings.sessions_max:
            appender.close()
        else:
            self._idle.append(appender)

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def renew(self) -> None:
        """Start over in a forked child: the connections are the parent's."""
        inherit(self._idle)
        self._start()
