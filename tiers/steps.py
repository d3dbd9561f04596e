"""Named steps of moves: whoever asks is told each one before and after it. Tests break off there, progress bars show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Reach = Callable[[str], None]
"""Told `upload` before the step of that name and `upload done` after it; by several threads when steps go on side by side."""


def unheard(_: str) -> None:
    """What is told when nobody asks."""


def within(reach: Reach, move: str) -> Reach:
    """What tells `reach` the steps of a move as `<move>: <step>`."""
    return reach if reach is unheard else lambda step: reach(f"{move}: {step}")


@contextmanager
def named(reach: Reach, name: str) -> Iterator[None]:
    """The step inside; it is not done when it raises."""
    reach(name)
    yield
    reach(f"{name} done")
