"""What happens at a point, in the process that reaches it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .refusal import refuse_writes

PIECE_BYTES = 1 << 20


class Injected(RuntimeError):
    """Raised at a point: nothing of ours expects it."""


def raising() -> None:
    raise Injected("a fault at this point")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def filling(filler: Path) -> Callable[[], None]:
    """Fills the file system that `filler` is on, to the last byte."""

    def fill() -> None:
        with filler.open("ab", buffering=0) as file:
            for size in (PIECE_BYTES, 4096, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    return fill


def refusing(number: int = errno.EIO) -> Callable[[], None]:
    return lambda: refuse_writes(number)


class Once:
    """A Reach at which something happens when one point is reached for the first time."""

    def __init__(self, point: str, act: Callable[[], None]) -> None:
        self.reached: list[str] = []
        self._point = point
        self._act = act

    def __call__(self, point: str) -> None:
        first = point not in self.reached
        if first:
            self.reached.append(point)
        if first and point == self._point:
            self._act()


class Each:
    """A Reach that raises at every point, each when it is reached for the first time."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    def __call__(self, point: str) -> None:
        if point not in self.reached:
            self.reached.append(point)
            raising()
