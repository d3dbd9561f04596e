"""Cold objects as files that DuckDB can read without an extension, in few requests and never more than once at a time.

    files = ColdFiles(cold)
    files.know({key: size_bytes})       # from the ledger: no request is needed to open a file
    con.register_filesystem(files)
    con.sql("SELECT … FROM read_parquet('cold://events/day=2026-11-13/x-1.parquet')")

The end of a file, where Parquet's footer is, comes with one request and, of a small file, all of it. Other reads come in whole
blocks; neighbouring blocks that are missing come with one request. Objects are immutable, so what was read stays right.
"""

from __future__ import annotations

import copy
import io
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import msgspec
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from thermocline.errors import ThermoclineError, TierCorrupt

from .cold import Cold

MIB: Final = 1 << 20
WRITTEN_AT: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""What every object says of its age: it never changes, and DuckDB asks before it believes its own cache."""

FAILURES_MAX: Final = 64
"""Remembered at once: of so many queries that fail side by side each finds its own."""

Block: TypeAlias = tuple[str, int]
"""Key, and number from the front; the end of a file is TAIL."""
TAIL: Final = -1


class Reads(msgspec.Struct, frozen=True, kw_only=True):
    """What a ColdFiles has asked its store for so far."""

    requests: int
    bytes: int
    cached_bytes: int


class ColdFiles(AbstractFileSystem):  # type: ignore[misc]
    """A read-only fsspec file system over the objects of `cold`. Thread-safe. Errors are those of `Cold`.

    block_bytes      what is read at least, but for the end of a file
    tail_bytes       of the end of a file, read first; a file of at most one block is read whole
    cache_bytes_max  of blocks kept, over all files; the least lately used go first
    """

    protocol = "cold"
    cachable = False
    root_marker = ""

    def __init__(
        self, cold: Cold, *, block_bytes: int = MIB, tail_bytes: int = 256 << 10, cache_bytes_max: int = 128 * MIB
    ) -> None:
        super().__init__()
        self._cold = cold
        self._block_bytes = block_bytes
        self._tail_bytes = tail_bytes
        self._cache_bytes_max = cache_bytes_max
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._cached: OrderedDict[Block, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._coming: dict[Block, Future[bytes]] = {}
        self._requests = 0
        self._bytes = 0
        self._failures: deque[ThermoclineError] = deque(maxlen=FAILURES_MAX)

    def know(self, sizes: Mapping[str, int]) -> None:
        """Sizes in bytes of objects by key, so that they need not be asked for."""
        with self._lock:
            self._sizes.update(sizes)

    @property
    def reads(self) -> Reads:
        with self._lock:
            return Reads(requests=self._requests, bytes=self._bytes, cached_bytes=self._cached_bytes)

    def failure_in(self, text: str) -> ThermoclineError | None:
        """What the store raised that the text of an error of DuckDB's quotes: it passes on no more than that. None when it is
        about something else. Queries that fail side by side each find theirs."""
        with self._lock:
            found = next((one for one in reversed(self._failures) if str(one) in text), None)
        return copy.copy(found)

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except ThermoclineError as exc:
            with self._lock:
                self._failures.append(copy.copy(exc))  # without the frames it was raised in
            raise

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """FileNotFoundError when there is no such object."""
        key = self._strip_protocol(path)
        return {"name": key, "size": self._size(key), "type": "file"}

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self._size(self._strip_protocol(path))
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> datetime:
        return WRITTEN_AT

    def glob(self, path: str, **_: Any) -> list[str]:
        """Keys that match; a known key, or a path without wildcards, stands for itself."""
        key = self._strip_protocol(path)
        plain = min((key.index(sign) for sign in "*?[" if sign in key), default=len(key))
        if key in self._sizes or plain == len(key):
            return [key] if self.exists(key) else []
        self._count(0)
        pattern = re.compile(glob_translate(key))
        with self._remembered():
            stored = [one for one in self._cold.objects(key[:plain]) if pattern.match(one.key)]
        sizes = {one.key: one.size_bytes for one in stored}
        self.know(sizes)
        return list(sizes)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> ColdFile:
        if mode != "rb":
            raise PermissionError("cold objects are only read here")
        key = self._strip_protocol(path)
        return ColdFile(self, key, self._size(key))

    def open(self, path: str, mode: str = "rb", **_: Any) -> ColdFile:
        return self._open(path, mode)

    def _size(self, key: str) -> int:
        size = self._sizes.get(key)
        if size is None:
            self._count(0)
            with self._remembered():
                size = self._cold.size(key)
            if size is None:
                raise FileNotFoundError(self._cold.url_of(key))
            self.know({key: size})
        return size

    def _count(self, read_bytes: int) -> None:
        with self._lock:
            self._requests += 1
            self._bytes += read_bytes

    def read_range(self, key: str, begin: int, end: int) -> bytes:
        """Bytes of an object, which has that many."""
        size = self._size(key)
        if begin >= end:
            return b""
        blocks = [(key, number) for number in self._numbers(size, begin, end)]
        with self._remembered():
            found = self._blocks(blocks, size)
        spans = [self._span(number, size) for _, number in blocks]
        view = b"".join(content[max(begin - at, 0) : end - at] for content, (at, _) in zip(found, spans, strict=True))
        assert len(view) == end - begin, f"{key}: {len(view)} bytes of {begin}..{end}"
        return view

    def _tail_begin(self, size: int) -> int:
        return 0 if size <= self._block_bytes else size - min(self._tail_bytes, size)

    def _span(self, number: int, size: int) -> tuple[int, int]:
        """Where a block begins and ends."""
        tail = self._tail_begin(size)
        if number == TAIL:
            return tail, size
        return number * self._block_bytes, min((number + 1) * self._block_bytes, tail)

    def _numbers(self, size: int, begin: int, end: int) -> list[int]:
        """The blocks a range touches, in the order of the file."""
        tail = self._tail_begin(size)
        last = -(-min(end, tail) // self._block_bytes)
        numbers = list(range(begin // self._block_bytes, last)) if begin < tail else []
        return [*numbers, TAIL] if end > tail else numbers

    def _blocks(self, blocks: Sequence[Block], size: int) -> list[bytes]:
        """What the blocks of one file hold. Those another thread is fetching are waited for, the others fetched."""
        with self._lock:
            found: dict[Block, bytes | Future[bytes]] = {}
            mine: dict[Block, Future[bytes]] = {}
            for block in blocks:
                if block in self._cached:
                    self._cached.move_to_end(block)
                    found[block] = self._cached[block]
                elif block in self._coming:
                    found[block] = self._coming[block]
                else:
                    found[block] = mine[block] = self._coming[block] = Future()
        try:
            for run in _runs(list(mine), blocks):
                self._fetch(run, size, mine)
        except BaseException as exc:
            with self._lock:
                for block, future in mine.items():
                    if not future.done():
                        del self._coming[block]
                        future.set_exception(exc)
            raise
        return [part.result() if isinstance(part, Future) else part for part in found.values()]

    def _fetch(self, run: Sequence[Block], size: int, mine: Mapping[Block, Future[bytes]]) -> None:
        """Read neighbouring blocks with one request, and keep them."""
        key = run[0][0]
        spans = [self._span(number, size) for _, number in run]
        begin, end = spans[0][0], spans[-1][1]
        content = self._cold.get(key, offset=begin, length=end - begin)
        self._count(len(content))
        if len(content) != end - begin:
            raise TierCorrupt(f"{self._cold.url_of(key)} ends after {begin + len(content)} of {size} bytes: restore it")
        with self._lock:
            for block, (first, last) in zip(run, spans, strict=True):
                part = content[first - begin : last - begin]
                self._cached[block] = part
                self._cached_bytes += len(part)
                del self._coming[block]
                mine[block].set_result(part)
            while self._cached_bytes > self._cache_bytes_max:
                self._cached_bytes -= len(self._cached.popitem(last=False)[1])


class ColdFile(io.RawIOBase):
    """An object as a file. Each thread has a position of its own, so that threads can share one handle."""

    def __init__(self, files: ColdFiles, key: str, size: int) -> None:
        super().__init__()
        self.path = key
        self.size = size
        self._files = files
        self._place = threading.local()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return getattr(self._place, "at", 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        at = self._place.at = max(base + offset, 0)
        return at

    def read(self, count: int | None = -1) -> bytes:
        begin = self.tell()
        end = self.size if count is None or count < 0 else min(begin + count, self.size)
        content = self._files.read_range(self.path, begin, end)
        self._place.at = begin + len(content)
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _runs(missing: Sequence[Block], asked: Sequence[Block]) -> list[list[Block]]:
    """The missing blocks in groups of neighbours, in the order of those asked for."""
    order = {block: place for place, block in enumerate(asked)}
    runs: list[list[Block]] = []
    for block in missing:
        if runs and order[block] == order[runs[-1][-1]] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs
