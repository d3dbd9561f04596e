"""A case: what is measured at once and gives some rows. A table: cases that belong together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .results import Result, Row

DAY_US = 86_400_000_000
WHOLE = "whole"
"""A file in a folder that has been loaded to the end."""


class Bench:
    """What a case works with: folders that end with it, and things that several cases share."""

    def __init__(self, folder: Path, *, quick: bool, loaded: Path | None = None) -> None:
        """loaded  a folder that keeps what `loading` makes, and whose week of events is the one of the first run with it"""
        self.root = folder
        self.quick = quick
        self.end_us = time.time_ns() // 1000 // DAY_US * DAY_US
        """The last midnight: where the events' week ends."""
        self._loaded = loaded
        if loaded is not None:
            loaded.mkdir(parents=True, exist_ok=True)
            kept = loaded / "end_us"
            self.end_us = int(kept.read_text()) if kept.exists() else self.end_us
            kept.write_text(str(self.end_us))
        self._shared: dict[tuple[Any, ...], Any] = {}
        self._folders: dict[Path, tuple[Any, ...] | None] = {}
        """Each with what it is shared as, None when it is of the case under way."""
        self._making: tuple[Any, ...] | None = None
        self._size = self._made = 0

    def folder(self, name: str) -> Path:
        """A new empty folder."""
        self._made += 1
        made = self.root / f"{self._made}-{name}"
        made.mkdir(parents=True)
        self._folders[made] = self._making
        return made

    @contextmanager
    def loading(self, name: str, *, keep: bool = True) -> Iterator[tuple[Path, bool]]:
        """(folder, whether it has been loaded already); it has been when this ends without an error."""
        if self._loaded is None or not keep:
            yield self.folder(name), False
            return
        folder = self._loaded / name
        whole = folder / WHOLE
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, whole.exists()
        whole.touch()

    def shared(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gave the first time it was asked for at this size; it has a `close`.

        key  its first part: the group of cases that share it, and all groups whose names begin like it
        """
        if key not in self._shared:
            self._making = key
            try:
                self._shared[key] = make()
            finally:
                self._making = None
        return self._shared[key]

    def begin(self, events: int, group: str) -> None:
        """Called before each case: what it does not share is closed and removed."""
        self._drop([key for key in self._shared if events != self._size or not group.startswith(key[0])])
        self._size = events

    def close(self) -> None:
        self._drop(list(self._shared))

    def _drop(self, keys: Sequence[tuple[Any, ...]]) -> None:
        for key in reversed(keys):
            self._shared.pop(key).close()
        for path, key in list(self._folders.items()):
            if key not in self._shared:
                shutil.rmtree(path, ignore_errors=True)
                del self._folders[path]


class Case(NamedTuple):
    key: str
    """Unique within the table: what its result is stored under."""
    events: int
    run: Callable[[Bench], Sequence[Row]]
    product: bool = True
    """Whether the product takes part: if not, a change of it does not make the result old."""
    group: str = ""
    """Cases of one size and group run one after the other, whatever table they are of, and share what they load."""


class Table(NamedTuple):
    name: str
    title: str
    about: str
    """What is measured and how, for the report."""
    sizes: tuple[int, ...]
    """Of the full run."""
    cases: Callable[[int, bool], list[Case]]
    """(size, quick) → its cases."""
    derived: Callable[[Sequence[Result]], list[Row]] = lambda _: []
    """Rows that follow from the results of several sizes."""
    quick_events: int = 1_000_000
    """Size of the quick run: all tables together have five minutes. Rates of what comes in are measured on a part of so many."""
