"""A bounded pool of appenders, the last used first, so that a quiet process keeps few connections busy and a busy one many."""

from __future__ import annotations

from collections import deque
from threading import Lock

from thermocline.errors import Backpressure

from .appender import Appender
from .sending import RETRY_AFTER_S
from .source import Source, inherit


class _Turn:
    """A caller that waits until an appender comes back or one more may be opened."""

    def __init__(self) -> None:
        self.ready = Lock()
        self.ready.acquire()
        self.served = False
        self.appender: Appender | None = None
        """What came back; None when served: open another."""


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
        self._turns: deque[_Turn] = deque()
        self._lock = Lock()
        self._incarnation = ""
        self._closed = False

    def borrow(self) -> Appender:
        """An appender of one's own. While all are in use callers have their turn as they came; at the deadline Backpressure."""
        try:
            if not self._turns:
                return self._idle.pop()
        except IndexError:
            pass
        return self._waited_for() or self._opened()

    def _waited_for(self) -> Appender | None:
        """One that came back; None when another may be opened."""
        turn, came = _Turn(), False
        try:
            with self._lock:
                self._turns.append(turn)
                self._serve()
            came = turn.ready.acquire(timeout=self._settings.deadline_s)
        finally:
            if not came:
                self._leave(turn)
        if came:
            return turn.appender
        limit = self._settings.sessions_max
        raise Backpressure(f"all {limit} connections (ingest.sessions_max) are in use", retry_after_s=RETRY_AFTER_S)

    def _serve(self) -> None:
        """Who has waited longest has what there is. With the lock held."""
        while self._turns:
            appender = None
            try:
                appender = self._idle.pop()
            except IndexError:
                if self._live >= self._settings.sessions_max:
                    return
                self._live += 1
            turn = self._turns.popleft()
            turn.appender, turn.served = appender, True
            turn.ready.release()

    def _leave(self, turn: _Turn) -> None:
        """Wait no more. What came all the same is the next one's."""
        with self._lock:
            if turn in self._turns:
                self._turns.remove(turn)
            elif turn.appender is not None:
                self._idle.append(turn.appender)
            elif turn.served:
                self._live -= 1
            self._serve()

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
        if self._turns:
            with self._lock:
                self._serve()

    def discard(self, appender: Appender) -> None:
        """Free an appender's connection and its place; `adopt` brings it back."""
        appender.disconnect()
        self._forget_one()

    def adopt(self, appender: Appender) -> None:
        """Take a discarded appender whose call has ended in outcomes after all."""
        with self._lock:
            welcome = not self._closed and self._live < self._settings.sessions_max
            self._live += welcome
        if welcome:
            self.give_back(appender)
        else:
            appender.close()

    def _forget_one(self) -> None:
        with self._lock:
            self._live -= 1
            self._serve()

    def close(self) -> None:
        """Close what is idle, and what is borrowed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def renew(self) -> None:
        """Start over in a forked child: the connections are the parent's."""
        inherit(self._idle)
        self._start()
