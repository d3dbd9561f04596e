"""Limits that a request meets before anything of it is parsed: bytes, depth, rate, room. No driver, no clock of its own."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .problems import RETRY_AFTER_S, Problem

CALLERS_MAX: Final = 10_000
"""Callers whose rate is remembered; the one that was quiet longest gives way."""
BURST_S: Final = 1.0
"""How much of a second's requests may come at once."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


class Rates:
    """Token buckets by caller, a bounded number of them."""

    def __init__(self, per_s: float, burst: float) -> None:
        """per_s  0: no limit"""
        self._per_s = per_s
        self._burst = max(1.0, burst)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, now_s: float, *, take: bool = True) -> float:
        """How long the caller must wait before its next request; 0 when it may make one now, which is then counted.

        take  False: only look
        """
        if not self._per_s:
            return 0.0
        left, then_s = self._left.pop(caller, (self._burst, now_s))
        left = min(self._burst, left + (now_s - then_s) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._left[caller] = (left - 1 if take and not wait_s else left, now_s)
        if len(self._left) > CALLERS_MAX:
            self._left.popitem(last=False)
        return wait_s

    def __len__(self) -> int:
        return len(self._left)


class Room:
    """Places of a kind, so many and no more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0

    def check(self, what: str, setting: str) -> None:
        """Problem 503 when all places are taken."""
        if self.taken >= self.size:
            detail = f"{self.size} {what} are under way ({setting}), and that is all there may be: try again later, or raise it"
            raise Problem(503, "too-busy", detail, retry_after_s=RETRY_AFTER_S)

    @contextmanager
    def place(self, what: str, setting: str) -> Iterator[None]:
        """One of the places, for as long as the block runs. Problem 503 when all are taken."""
        self.check(what, setting)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Budget:
    """Bytes that may be held at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0

    def take(self, count: int) -> bool:
        """Whether there was room for so many more, which are then taken."""
        if self.taken + count > self.size:
            return False
        self.taken += count
        return True

    def give_back(self, count: int) -> None:
        self.taken -= count


def deeper_than(raw: bytes, depth_max: int) -> bool:
    """Whether JSON is nested deeper than that. What is no JSON may be called anything. Nothing is parsed."""
    if raw.count(b"{") + raw.count(b"[") <= depth_max:
        return False
    depth = 0
    for token in _TOKENS.finditer(raw):
        kind = raw[token.start()]
        if kind in b"[{":
            depth += 1
            if depth > depth_max:
                return True
        elif kind in b"]}":
            depth -= 1
    return False
