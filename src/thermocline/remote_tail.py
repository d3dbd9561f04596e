"""A tail of a server: a thread reads the stream, comes back where it broke off, and holds a bounded number of items."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple

import httpx
import orjson

from thermocline.errors import ThermoclineError, TierUnavailable
from thermocline.query.gaps import Gap

from .remote_answers import error_of, event_of

HELD_MAX: Final = 500
"""Items read ahead; beyond it the server waits."""
AGAIN_S: Final = 1.0
QUIET_S: Final = 60.0
"""Longer than the server is ever silent (serve.heartbeat_s): then the connection is taken for lost."""


class Followed(NamedTuple):
    """One event, and the position that resumes after it."""

    event: dict[str, Any]
    """Columns as in `events`, values plain Python."""
    position: str


Item = Followed | Gap


class RemoteTail:
    """Events as they come. A context manager; iterating waits for more and never ends. For one thread at a time."""

    def __init__(self, client: httpx.Client, params: Mapping[str, str]) -> None:
        """The stream is opened before this returns. Errors are those of Store.tail."""
        self._client = client
        self._params = dict(params)
        self.position = ""
        """Resumes after everything that `read` has given."""
        self._held: queue.Queue[Item | ThermoclineError] = queue.Queue(HELD_MAX)
        self._last_id = ""
        self._closed = threading.Event()
        self._stream = self._opened()
        self._thread = threading.Thread(target=self._run, name="thermocline-remote-tail", daemon=True)
        self._thread.start()

    def read(self, limit: int = 500, timeout_s: float = 1.0) -> list[Item]:
        """The next events and gaps, at most `limit`; [] when none came within `timeout_s`. TierUnavailable: the server is away;
        the same call goes on from there later."""
        found: list[Item] = []
        deadline_s = time.monotonic() + timeout_s
        while len(found) < limit:
            try:
                item = self._held.get(timeout=max(0.0, deadline_s - time.monotonic())) if not found else self._held.get_nowait()
            except queue.Empty:
                return found
            if isinstance(item, ThermoclineError):
                if not found:
                    raise item
                self._held.put(item)
                return found
            self.position = item.position
            found.append(item)
        return found

    def __iter__(self) -> Iterator[Item]:
        while not self._closed.is_set():
            yield from self.read()

    def close(self) -> None:
        """End it. Safe to repeat."""
        self._closed.set()
        line = self._stream.extensions["network_stream"].get_extra_info("socket")
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)  # closing it would not wake the thread that waits for it
        while self._thread.is_alive():  # it may wait for room
            try:
                self._held.get_nowait()
            except queue.Empty:
                self._thread.join(0.02)

    def __enter__(self) -> RemoteTail:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _opened(self) -> httpx.Response:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": self._last_id} if self._last_id else {})}
        base = self._client.timeout
        timeout = httpx.Timeout(connect=base.connect, read=QUIET_S, write=base.write, pool=base.pool)
        try:
            asked = self._client.build_request("GET", "/v1/tail", params=self._params, headers=headers, timeout=timeout)
            answer = self._client.send(asked, stream=True)
        except httpx.TransportError as exc:
            raise TierUnavailable(f"{self._client.base_url}: {type(exc).__name__}: is the server running?") from exc
        if answer.status_code != 200:
            with closing(answer):
                raise error_of(answer.status_code, answer.read())
        return answer

    def _run(self) -> None:
        while not self._closed.is_set():
            with closing(self._stream), suppress(httpx.HTTPError, httpx.StreamError, ValueError, OSError):
                self._read_stream()
            while not self._closed.wait(AGAIN_S):  # it broke off: come back with the last id
                try:
                    self._stream = self._opened()
                    break
                except ThermoclineError as exc:
                    self._held.put(exc)
        self._stream.close()

    def _read_stream(self) -> None:
        kind, last_id = "message", self._last_id
        data: list[str] = []
        for line in self._stream.iter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    self._take(kind, "\n".join(data), last_id)
                self._last_id = last_id
                kind, data = "message", []
            elif name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            elif name == "id":
                last_id = value

    def _take(self, kind: str, data: str, position: str) -> None:
        if kind == "event":
            self._held.put(Followed(event_of(data), position))
        elif kind == "gap":
            self._held.put(Gap(**orjson.loads(data), position=position))
        elif kind == "problem":
            self._held.put(error_of(orjson.loads(data).get("status", 503), data.encode()))
