"""A line between clients and a Redis that does what networks do, by a seed: a thread that copies bytes between two unix sockets.

    with FaultyLine(server.socket, folder / "line.sock", MIXES["drop 10 %"], seed=1) as line:
        load({"redis_url": server.url.replace(server.socket, str(folder / "line.sock")), …})
    line.counts["drop"]       # how often it did

The dice are thrown for each piece of bytes that comes, which is a request, or the replies to one.

    drop       the replies are thrown away, and the connection stays open
    delay      the replies come later, some after the client has given up
    late       the request comes later, mostly after the client has given up and sent it again, perhaps after its deadline
    reset      the connection breaks: before the request reaches Redis, or before the replies reach the client
    half-open  from now on nothing passes any more in either direction, and nothing is closed
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType

import msgspec

LATE_S_MAX = 0.8
LINGER_NONE = struct.pack("ii", 1, 0)
"""SO_LINGER: close throws away what was not read."""


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of requests, or of replies, that meet a fault."""

    drop: float = 0.0
    delay: float = 0.0
    late: float = 0.0
    reset: float = 0.0
    half_open: float = 0.0


MIXES = {
    "drop 1 %": Mix(drop=0.01),
    "drop 10 %": Mix(drop=0.10),
    "drop 50 %": Mix(drop=0.50),
    "delay": Mix(delay=0.10, late=0.05),
    "late": Mix(late=0.50),
    "reset": Mix(reset=0.10),
    "half-open": Mix(half_open=0.05),
    "all": Mix(drop=0.05, delay=0.05, late=0.05, reset=0.05, half_open=0.02),
}


class FaultyLine:
    """Serves while it is entered."""

    def __init__(self, upstream: str, path: Path | str, mix: Mix, *, seed: int) -> None:
        self.mix = mix
        self.counts: Counter[str] = Counter()
        self._upstream, self._path = upstream, str(path)
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._joins: set[asyncio.Task[None]] = set()
        server = await asyncio.start_unix_server(self._accept, self._path)
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._joins:
            task.cancel()
        await asyncio.gather(*self._joins, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._join(reader, writer))
        self._joins.add(task)
        task.add_done_callback(self._joins.discard)

    async def _join(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, until both ends are closed: what is late still goes its way when the client has left."""
        line = _Connection(self)
        try:
            server, to_server = await asyncio.open_unix_connection(self._upstream)
            try:
                await asyncio.gather(line.requests(client, to_server, to_client), line.replies(server, to_client))
            finally:
                to_server.close()
        except OSError:
            pass
        finally:
            to_client.close()

    def throw(self, kind: str, share: float) -> bool:
        """Whether this fault happens now."""
        happens = share > 0 and self._dice.random() < share
        self.counts[kind] += happens
        return happens

    def late_s(self) -> float:
        return self._dice.uniform(0, LATE_S_MAX)

    def __enter__(self) -> FaultyLine:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()


class _Connection:
    """Two directions that share whether they are dead."""

    def __init__(self, line: FaultyLine) -> None:
        self._line = line
        self._dead = False

    async def requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        line, mix = self._line, self._line.mix
        while piece := await _piece(client):
            if self._dead or line.throw("half-open", mix.half_open):
                self._dead = True
                continue
            if line.throw("reset before", mix.reset / 2):
                _reset(back)
                break
            if line.throw("late", mix.late):
                await asyncio.sleep(line.late_s())
            to_server.write(piece)
        if to_server.can_write_eof():
            to_server.write_eof()

    async def replies(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        line, mix = self._line, self._line.mix
        while piece := await _piece(server):
            if self._dead or line.throw("drop", mix.drop):
                continue
            if line.throw("reset after", mix.reset / 2):
                _reset(to_client)
                continue
            if line.throw("delay", mix.delay):
                await asyncio.sleep(line.late_s())
            if not to_client.is_closing():
                to_client.write(piece)
        to_client.close()


async def _piece(source: asyncio.StreamReader) -> bytes:
    try:
        return await source.read(1 << 20)
    except OSError:
        return b""


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection at once."""
    end = writer.get_extra_info("socket")
    if end is not None and not writer.is_closing():
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
    writer.transport.abort()
