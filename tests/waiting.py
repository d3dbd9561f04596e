"""Waiting for a condition: the one place where tests let time go by."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], limit_s: float, what: str) -> None:
    """Return as soon as `condition` holds; TimeoutError naming `what` after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.005)


def pause(seconds: float) -> None:
    """Until so many seconds are over."""
    end_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end_s, seconds + 30, "the pause is over")


class Pace:
    """Keeps to so many a second on average; 0 is no limit."""

    BEHIND_S_MAX = 1.0
    """What one who could not keep its rate catches up on at most."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next_s = time.monotonic()

    def wait(self, count: int) -> None:
        """Until `count` more may have been done."""
        if self._rate:
            now_s = time.monotonic()
            self._next_s = max(self._next_s, now_s - self.BEHIND_S_MAX) + count / self._rate
            pause(max(0.0, self._next_s - now_s))
