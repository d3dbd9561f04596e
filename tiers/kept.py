"""What was read of files that never change, kept for who asks next: what was asked for last, up to a bound. Thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

T = TypeVar("T", bound=Collection[object])


class Kept(Generic[T]):
    """Collections by the name of the file they were read from.

    items_max  how many items all of them may have together; what has more by itself is not kept
    """

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._items = 0
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, read: Callable[[], T]) -> T:
        """What `read` gave when it was called for that name, now or before. When it raises, nothing is kept."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        found = read()
        with self._lock:
            if name not in self._kept and len(found) <= self._items_max:
                self._kept[name] = found
                self._items += _size(found)
            while self._items > self._items_max:
                self._items -= _size(self._kept.popitem(last=False)[1])
        return found


def _size(found: Collection[object]) -> int:
    """Items, one at least: names take room, too."""
    return max(1, len(found))
