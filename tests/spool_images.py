"""What a crash would leave of a spool and its store, taken at every step of both: before, within and after every write, and
around every round that is sent. Each image can be opened as if the process, or the machine, had died there."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.model_store import ModelSession, ModelStore
from thermocline.ingest.spool_file import SUFFIX, SpoolFile


class Image(msgspec.Struct):
    """One instant."""

    what: str
    files: dict[str, bytes]
    store: ModelStore
    acknowledged: int
    """Events that `flush` had returned for."""


class Images:
    """Taken while `recording` is entered."""

    def __init__(self, folder: Path, store: ModelStore, seed: int) -> None:
        self.taken: list[Image] = []
        self.acknowledged = 0
        self._folder = folder
        self._store = store
        self._dice = random.Random(seed)
        self._lock = threading.RLock()
        self._synced: dict[str, int] = {}

    def take(self, what: str, partial: tuple[str, bytes] | None = None) -> None:
        """The files as they are, with part of a write at the end of one; and without what was never fsynced."""
        with self._lock:
            files = {path.name: path.read_bytes() for path in self._folder.glob(f"*{SUFFIX}")}
            if partial is not None:
                name, data = partial
                files[name] = files.get(name, b"") + data[: self._dice.randrange(len(data) + 1)]
            self.taken.append(Image(what, files, cloned(self._store), self.acknowledged))
            durable = {name: data[: self._synced.get(name, 0)] for name, data in files.items()}
            if durable != files:
                self.taken.append(Image(f"{what}, power lost", durable, cloned(self._store), self.acknowledged))

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        append, remove, send = SpoolFile._append, SpoolFile.remove, ModelSession.send

        def slow_append(file: SpoolFile, data: bytes, records: int, *, sync: bool = True) -> None:
            with self._lock:
                self.take("before a write", (file.path.name, data))
                append(file, data, records, sync=sync)
                if sync:
                    self._synced[file.path.name] = file.path.stat().st_size
                self.take("after a write")

        def slow_remove(file: SpoolFile) -> None:
            with self._lock:
                self.take("before a file is deleted")
                remove(file)
                self.take("after a file was deleted")

        def slow_send(session: ModelSession, producer: str, requests: Sequence[Any], *, deadline_s: float) -> Any:
            with self._lock:
                self.take("before a round")
                try:
                    return send(session, producer, requests, deadline_s=deadline_s)
                finally:
                    self.take("after a round")

        with monkeypatch.context() as patch:
            patch.setattr(SpoolFile, "_append", slow_append)
            patch.setattr(SpoolFile, "remove", slow_remove)
            patch.setattr(ModelSession, "send", slow_send)
            yield

    def some(self, count: int) -> list[Image]:
        """As many of those taken, evenly mixed by the seed."""
        return self.taken if len(self.taken) <= count else self._dice.sample(self.taken, count)


def cloned(store: ModelStore) -> ModelStore:
    """The same data, without faults."""
    clone = ModelStore()
    clone.incarnation, clone.previous, clone.era = store.incarnation, store.previous, store.era
    clone.shards, clone.unconfirmed = copy.deepcopy(store.shards), set(store.unconfirmed)
    return clone
