"""Named steps of moves: whoever asks is told each one before and after it. Tests break off there, progress bars show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Reach = Callable[[str], None]
"""Told `upload` before the step of that name and `upload done` after it."""


@contextmanager
def named(reach: Reach, name: str) -> Iterator[None]:
    """The step inside; it is not done when it raises."""
    reach(name)
    yield
    reach(f"{name} done")
