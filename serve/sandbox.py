"""SQL of people and agents who may ask but are not trusted: each query in a process of its own, which then ends.

    with Sandbox(store, store.settings.sandbox) as sandbox:
        with sandbox.run("SELECT event_type, count(*) FROM events GROUP BY ALL") as answer:
            for batch in answer.batches(): ...
        answer.coverage, answer.truncated

1. the text goes to a process that waits ready; it parses it and says which rows the query can use. Nothing here parses it
2. this process takes a cut, prunes, copies what is on S3, and hands over names of files, relations, and unsettled events
3. the other one attaches all that, locks itself in, runs the query, and sends rows

What each layer protects from whom is in docs/security.md.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

import msgspec
import pyarrow as pa

from thermocline.config import SandboxSettings
from thermocline.errors import QueryRefused, TierUnavailable
from thermocline.query.attached import SegmentGone
from thermocline.query.coverage import Coverage
from thermocline.query.handed import Handover
from thermocline.store import Store
from thermocline.tiers.whole_file import file_errors

from . import sandbox_wire as wire
from .sandbox_children import CLOSED, Child, Children
from .sandbox_rows import ROW_EXTRA_BYTES

_numbers = itertools.count(1)
Parameters = Sequence[Any] | Mapping[str, Any] | None
_OUT_OF_TIME: Final = (-signal.SIGXCPU, -signal.SIGALRM)


class Sandbox:
    """Untrusted queries over one store. Thread-safe; a context manager. Close it before the store.

    A query is bound to `settings`, and runs beside at most `children_max` others.
    """

    def __init__(self, store: Store, settings: SandboxSettings) -> None:
        self._store = store
        self._settings = settings
        self._children = Children(settings)

    def run(
        self,
        query: str,
        parameters: Parameters = None,
        *,
        rows_max: int | None = None,
        deadline_s: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Answer:
        """The answer to one SELECT, or EXPLAIN of one, over every event acknowledged before the call. Close it.

        parameters  plain values: a list for `?` and `$1`, a dict for `$name`
        rows_max    a lower cap than the setting
        deadline_s  an earlier one than the setting; it holds until the last batch is taken
        cancelled   set it, and the query is killed: whoever waits for it gets QueryRefused

        QueryRefused names the limit and its setting. Backpressure: too many queries run. TierUnavailable, TierCorrupt: a
        tier cannot be read.
        """
        limits = self._limits(rows_max, deadline_s)
        ask = self._ask(query, parameters, limits)
        until_s = time.monotonic() + limits.deadline_s
        child = self._children.borrow(deadline_s=until_s, cancelled=cancelled)
        running = _Running(self._children, child, limits, self._spill())
        try:
            return self._started(running, ask)
        except BaseException:
            running.end()
            raise

    def _started(self, running: _Running, ask: bytes) -> Answer:
        from thermocline.query.prune import Reading  # with sqlglot, which a server that is asked nothing does not need

        running.talk(wire.READY, wire.Ready)
        running.send(wire.ASK, ask)
        reading = running.talk(wire.READING, Reading)

        def hand_over(handover: Handover, tail: pa.RecordBatchReader, coverage: Coverage) -> Answer:
            if running.used:  # data moved: the process has attached what is gone
                running.renew(ask)
            return running.answer(handover, tail, coverage)

        return self._store.lender.lend(reading, hand_over, copied_bytes_max=self._settings.copied_bytes_max)

    def _limits(self, rows_max: int | None, deadline_s: float | None) -> wire.Limits:
        known = self._settings.model_dump(include=set(wire.Limits.__struct_fields__))
        for name, asked in (("rows_max", rows_max), ("deadline_s", deadline_s)):
            if asked is not None and asked <= 0:
                raise QueryRefused(f"{name} must be positive, not {asked!r}")
            known[name] = known[name] if asked is None else min(asked, known[name])
        return wire.Limits(**known)

    def _ask(self, query: str, parameters: Parameters, limits: wire.Limits) -> bytes:
        if parameters is not None and not isinstance(parameters, list | tuple | dict):
            raise QueryRefused(f"parameters must be a list (for ? and $1) or a dict (for $name), not {parameters!r}")
        given: Any = list(parameters) if isinstance(parameters, tuple) else parameters
        try:
            size = len(query.encode()) + (len(wire.encode(given)) if given else 0)
            ask = wire.encode(wire.Ask(query, given, limits, tuple(one.relation for one in self._store.tiers.rollups)))
        except (ValueError, TypeError, RecursionError, OverflowError) as exc:
            raise QueryRefused(f"query and parameters must be text in UTF-8 and plain values ({exc})") from exc
        most = self._settings.query_bytes_max
        if size > most:
            raise QueryRefused(f"the query has {size} bytes, more than sandbox.query_bytes_max ({most}) allows")
        if isinstance(given, dict) and not all(isinstance(name, str) for name in given):
            raise QueryRefused("names of parameters must be text")
        if "\0" in query:
            raise QueryRefused("the query has a NUL character")
        return ask

    def _spill(self) -> str:
        if not self._settings.spill_bytes_max:
            return ""
        folder = self._store.settings.namespace_dir.absolute()
        return str(folder / f"spill-{os.getpid()}-sandbox-{next(_numbers)}")  # the worker removes what the dead leave

    @property
    def pids(self) -> list[int]:
        """The processes there are, waiting and running."""
        return self._children.pids

    @property
    def running(self) -> int:
        """Queries that run."""
        return self._children.running

    @property
    def waiting(self) -> int:
        """Queries that wait for one to end."""
        return self._children.waiting

    def close(self) -> None:
        """Kill every query. Safe to repeat."""
        self._children.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Answer:
    """Rows of one answer, on their way. A context manager; closing it early kills the query."""

    def __init__(self, running: _Running, schema: pa.Schema, coverage: Coverage) -> None:
        self._running = running
        self.schema = schema
        self.coverage = coverage
        self.truncated_by = ""
        """The setting that ended it before its last row, `sandbox.rows_max` or `sandbox.answer_bytes_max`; known after the
        last batch."""
        self.rows = 0
        """Given out so far."""

    @property
    def truncated(self) -> bool:
        """Whether there would have been more rows; known after the last batch."""
        return bool(self.truncated_by)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What is left of it, about a MiB at a time. Errors are those of `Sandbox.run`."""
        try:
            while (batch := self._running.next_batch(self.schema)) is not None:
                if isinstance(batch, wire.End):
                    self.truncated_by = f"sandbox.{batch.cut_by}" if batch.cut_by else ""
                    return
                self.rows += batch.num_rows
                yield batch
        except SegmentGone as exc:
            raise TierUnavailable(f"{exc} left the store while it was read: ask again") from exc
        finally:
            self.close()

    def to_arrow(self) -> pa.Table:
        """All of it, held whole."""
        return pa.Table.from_batches(list(self.batches()), schema=self.schema)

    def close(self) -> None:
        """Safe to repeat."""
        self._running.end()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Running:
    """One query and its process."""

    def __init__(self, children: Children, child: Child, limits: wire.Limits, spill: str) -> None:
        self._children = children
        self._child = child
        self._limits = limits
        self._spill = spill
        self._lock = threading.Lock()
        self._ended = False
        self._done = False
        self.used = False
        """Whether the process was handed something."""

    def send(self, kind: bytes, content: bytes) -> None:
        try:
            self._child.send(kind, content)
        except wire.Hangup:
            self._fail()

    def talk(self, kind: bytes, of: Any) -> Any:
        """The next word of the process, which is to be one of `kind`."""
        try:
            found, content = self._child.receive(bytes_max=wire.TALK_BYTES_MAX)
            if found == wire.FAILED:
                self._told(msgspec.msgpack.decode(content, type=wire.Failed))
            if found != kind:
                raise wire.BadFrame(f"{found!r} instead of {kind!r}")
            return msgspec.msgpack.decode(content, type=of)
        except (wire.BadFrame, msgspec.DecodeError) as exc:
            raise _misbehaved(exc) from exc
        except wire.Hangup:
            self._fail()

    def renew(self, ask: bytes) -> None:
        """Go on with another process."""
        deadline_s, cancelled = self._child.deadline_s, self._child.cancelled
        self._children.give_back(self._child)
        self._child = self._children.borrow(deadline_s=deadline_s, cancelled=cancelled)
        self.talk(wire.READY, wire.Ready)
        self.send(wire.ASK, ask)
        self.talk(wire.READING, msgspec.Raw)

    def answer(self, handover: Handover, tail: pa.RecordBatchReader, coverage: Coverage) -> Answer:
        """The beginning of the answer. SegmentGone."""
        self.used = True
        if self._spill:
            with file_errors(self._spill, setting="data_dir"):
                Path(self._spill).mkdir(exist_ok=True)
        self.send(wire.HANDED, wire.encode(wire.Handed(handover, self._spill)))
        self._send_tail(tail)
        labels = self.talk(wire.LABELS, wire.Labels).columns
        first = self._next()
        if isinstance(first, wire.End) or first.num_rows or len(first.schema) != len(labels):
            raise _misbehaved("no schema")
        columns = tuple(zip(first.schema.names, labels, strict=True))
        return Answer(self, first.schema, msgspec.structs.replace(coverage, columns=columns))

    def _send_tail(self, tail: pa.RecordBatchReader) -> None:
        """What stops it is that the process has ended: what it said last, or how it ended, says why."""
        sink = self._child.input
        stream = pa.ipc.new_stream(sink, tail.schema)
        for batch in tail:
            try:
                stream.write_batch(batch)
            except (OSError, ValueError):
                return
        with suppress(OSError, ValueError):
            stream.close()
            sink.flush()

    def next_batch(self, schema: pa.Schema) -> pa.RecordBatch | wire.End | None:
        """The next batch; the End after the last one; None after that."""
        if self._done:
            return None
        found = self._next()
        if isinstance(found, wire.End):
            self._done = True
            return found
        if not found.schema.equals(schema):
            raise _misbehaved("another schema")
        return found

    def _next(self) -> Any:
        """A RecordBatch, or the End."""
        limits = self._limits
        bytes_max = limits.row_bytes_max + ROW_EXTRA_BYTES + 4096 * limits.columns_max
        try:
            kind, content = self._child.receive(bytes_max=bytes_max)
            if kind == wire.FAILED:
                self._told(msgspec.msgpack.decode(content, type=wire.Failed))
            if kind == wire.END:
                return msgspec.msgpack.decode(content, type=wire.End)
            if kind != wire.BATCH:
                raise wire.BadFrame(repr(kind))
            with pa.ipc.open_stream(pa.py_buffer(content)) as stream:
                batch = next(iter(stream), None)
                if batch is None:
                    return pa.RecordBatch.from_pylist([], schema=stream.schema)
            batch.validate(full=True)
            return batch
        except (wire.BadFrame, msgspec.DecodeError, pa.ArrowException, OSError) as exc:
            raise _misbehaved(exc) from exc
        except wire.Hangup:
            self._fail()

    def _told(self, failed: wire.Failed) -> NoReturn:
        if failed.kind == "gone":
            raise SegmentGone(failed.text)
        if failed.kind == "broken":
            raise TierUnavailable(f"the query's process failed ({failed.text}): ask again, and run `thermocline verify`")
        raise QueryRefused(failed.text)

    def _fail(self) -> NoReturn:
        """The process ended without a word."""
        cause = self._child.cause
        code = self._child.close()
        seconds = f"sandbox.deadline_s ({self._limits.deadline_s:g} s)"
        if cause == "cancelled":
            raise QueryRefused("the query was cancelled")
        if cause == "closed":
            raise TierUnavailable(CLOSED)
        if cause == "deadline" or code in _OUT_OF_TIME:
            raise QueryRefused(f"the query took longer than {seconds}: bound it by timestamp or conversation_id, or raise it")
        if code < 0:
            name = signal.Signals(-code).name
            raise QueryRefused(
                f"the query ended its process ({name}), nothing else: it needs more than sandbox.memory_bytes_max "
                f"({self._limits.memory_bytes_max >> 20} MiB), or is nested too deep"
            )
        raise TierUnavailable(f"a process for queries ended with code {code}: see that {sys.executable} can run it")

    def end(self) -> None:
        """Let go of the process and of what it has spilled. Safe to repeat, from any thread."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._children.give_back(self._child)
        if self._spill:
            shutil.rmtree(self._spill, ignore_errors=True)


def _misbehaved(what: object) -> TierUnavailable:
    return TierUnavailable(f"a process for queries said what it should not ({what}); it was ended")
