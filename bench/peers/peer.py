"""What a benchmark asks of a peer. Each does what it can; a table asks only those that can."""

from __future__ import annotations

import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

Rows = list[tuple[Any, ...]]
NOT_INSTALLED = "not installed"
LEFT_OUT = "left out of this run"
HISTORY = "history"
ONE_DAY = "one_day"
ONE_CONVERSATION = "one_conversation"
BY_HOUR = "by_hour"
AGGREGATE = "aggregate"


class Unasked(TypeError):
    """A table asked a peer for what it cannot do."""

    def __init__(self, peer: Peer, what: str) -> None:
        super().__init__(f"{peer.title} has no {what}: take it out of the table's peers")


class Peer(ABC):
    """One store, in a folder of its own, from `open` to `close`."""

    name: ClassVar[str]
    title: ClassVar[str]
    configuration: ClassVar[str]
    """How it is set up, and by whose advice."""
    install: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    programs: ClassVar[tuple[str, ...]] = ()
    left_out: ClassVar[bool] = False
    """It is not to be measured in this run, though it may be installed."""
    events_max: ClassVar[int] = 100_000_000
    """It is not measured at more."""
    load_rows: ClassVar[int] = 100_000
    """Rows of a table that `load` is given."""
    queries: ClassVar[dict[str, str]] = {}
    """Text of each query it can answer."""

    stays: ClassVar[bool] = True
    """Whether what it has stored is in its folder and there again when it is opened anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured, with what has to be installed; empty when all is there."""
        if cls.left_out:
            return LEFT_OUT
        there = all(importlib.util.find_spec(one) for one in cls.modules) and all(
            shutil.which(one, path=_PATH) for one in cls.programs
        )
        return "" if there else f"{NOT_INSTALLED}: {cls.install}"

    @classmethod
    def version(cls) -> str:
        return ""

    @abstractmethod
    def open(self) -> None:
        """Start it, or open its files."""

    @abstractmethod
    def close(self) -> None:
        """Stop it; what `stays` is on disk."""

    def append_one(self, event: dict[str, Any]) -> None:
        """Store one event; it is acknowledged when this returns."""
        raise Unasked(self, "append_one")

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        """Store events that a producer has as Python values, in batches as advised; acknowledged when this returns."""
        raise Unasked(self, "append")

    def load(self, table: pa.Table) -> None:
        """Store many rows, the quickest way there is."""
        raise Unasked(self, "load")

    def loaded(self) -> None:  # noqa: B027  # most have nothing to do
        """Called once after the last `load`: what an operator would do then."""

    def query(self, name: str, parameters: Sequence[Any] = ()) -> Rows:
        raise Unasked(self, "query")

    def __enter__(self) -> Peer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def program(name: str) -> str:
    """The path of an installed program."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise FileNotFoundError(name)
    return found


_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/lib/postgresql/15/bin:/opt/homebrew/bin"
COLUMNS = (
    ("event_id", "text"),
    ("conversation_id", "text"),
    ("seq", "int"),
    ("event_type", "text"),
    ("timestamp", "time"),
    ("agent_id", "text"),
    ("task_id", "text"),
    ("parent_id", "text"),
    ("model", "text"),
    ("tool_name", "text"),
    ("status", "text"),
    ("duration_ms", "float"),
    ("cost_usd", "float"),
    ("input_tokens", "int"),
    ("output_tokens", "int"),
    ("content", "text"),
    ("metadata", "text"),
)
"""The columns of the workload, for peers that need a schema."""
NAMES = tuple(name for name, _ in COLUMNS)


def plain(table: pa.Table) -> pa.Table:
    """A table with nothing but plain types: ids as text, times in µs."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name == "event_id":
            columns[name] = pa.chunked_array([_hex(chunk.storage) for chunk in column.chunks], pa.string())
        elif pa.types.is_string_view(column.type):
            columns[name] = column.cast(pa.string())
        elif name == "timestamp":
            columns[name] = column.cast(pa.int64())
        else:
            columns[name] = column
    return pa.table(columns)


def _hex(ids: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Ids of 16 bytes as 32 digits."""
    raw = np.frombuffer(ids.buffers()[1], np.uint8)[16 * ids.offset : 16 * (ids.offset + len(ids))]
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[np.stack([raw >> 4, raw & 15], axis=1)]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(digits.tobytes()))


def values_of(event: dict[str, Any]) -> tuple[Any, ...]:
    """The values of an event in the order of NAMES; None where it has none."""
    return tuple([event.get(name) for name in NAMES])
