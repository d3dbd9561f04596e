"""A bounded pool of appenders, the last used first, so that a quiet process keeps few connections busy and a busy one many."""

from __future__ import annotations

from threading import Condition

from thermocline.errors import Backpressure

from .appender import Appender
from .sending import RETRY_AFTER_S
from .source import Source, inherit


class Pool:
    """Thread-safe. An appender is one thread's from `borrow` to `give_back` or `discard`.

    One whose call ended in an exception is discarded: what it sent last may be stored under a number it would use again.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._settings = source.settings.ingest
        self._start()

    def _start(self) -> None:
        self._idle: list[Appender] = []
        self._live = 0  # idle or borrowed
        self._waiting = 0
        self._freed = Condition()
        self._incarnation = ""
        self._closed = False

    def borrow(self) -> Appender:
        """An appender of one's own; waits for one up to the deadline, then Backpressure."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._waited_for() or self._opened()

    def _waited_for(self) -> Appender | None:
        """One that came back; None when another may be opened."""
        limit = self._settings.sessions_max
        with self._freed:
            self._waiting += 1
            try:
                while self._freed.wait_for(lambda: self._idle or self._live < limit, self._settings.deadline_s):
                    if self._live < limit and not self._idle:
                        self._live += 1
                        return None
                    try:
                        return self._idle.pop()
                    except IndexError:  # a borrower that did not have to wait was faster
                        continue
            finally:
                self._waiting -= 1
        raise Backpressure(f"all {limit} connections (ingest.sessions_max) are in use", retry_after_s=RETRY_AFTER_S)

    def _opened(self) -> Appender:
        try:
            session = self._source.session()
        except BaseException:
            self._forget_one()
            raise
        session.incarnation = self._incarnation  # it refuses a store that does not descend from the one seen so far
        unacked_max = self._settings.unacked_blocks_max
        return Appender(session, unacked_blocks_max=unacked_max, reconfirm=self._source.reconfirm)

    def give_back(self, appender: Appender) -> None:
        """Make an appender available again, its call having ended in outcomes."""
        self._incarnation = appender.incarnation or self._incarnation
        if self._closed or not appender.usable:
            self.discard(appender)
            return
        self._idle.append(appender)
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def discard(self, appender: Appender) -> None:
        """Free an appender's connection and its place; `adopt` brings it back."""
        appender.disconnect()
        self._forget_one()

    def adopt(self, appender: Appender) -> None:
        """Take a discarded appender whose call has ended in outcomes after all."""
        with self._freed:
            welcome = not self._closed and self._live < self._settings.sessions_max
            self._live += welcome
        if welcome:
            self.give_back(appender)
        else:
            appender.close()

    def _forget_one(self) -> None:
        with self._freed:
            self._live -= 1
            self._freed.notify()

    def close(self) -> None:
        """Close what is idle, and what is borrowed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def renew(self) -> None:
        """Start over in a forked child: the connections are the parent's."""
        inherit(self._idle)
        self._start()
