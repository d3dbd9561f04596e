"""uvicorn's HTTP/1.1 with limits of connections and of the time headers may take, its refusals as problem documents."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .problems import RETRY_AFTER_S, Problem

ABORT: Final = "abort"
"""In a request's state: ends its connection at once, whatever is still to be sent."""


class BoundedProtocol(H11Protocol):
    """One connection. `connections_max` and `headers_timeout_s` are set on a subclass made by `bounded`."""

    connections_max = 0
    headers_timeout_s = 0.0
    refused: Any = staticmethod(lambda reason: None)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        if len(self.connections) > self.connections_max:
            detail = f"{self.connections_max} connections are open (serve.connections_max): try again later"
            self._refuse(Problem(503, "too-busy", detail, retry_after_s=RETRY_AFTER_S))
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._headers_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_there()

    def on_response_complete(self) -> None:
        self._headers_there()
        super().on_response_complete()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_there()

    def send_400_response(self, msg: str) -> None:
        """What h11 does not take: 431 for headers beyond all bounds, else 400."""
        if self.conn.trailing_data[0] and len(self.conn.trailing_data[0]) >= (self.config.h11_max_incomplete_event_size or 0) > 0:
            self._refuse(Problem(431, "headers-too-large", "the headers are too large: send fewer or shorter ones"))
        else:
            self._refuse(Problem(400, "bad-request", "this is no HTTP/1.1 request"))

    def _await_headers(self) -> None:
        self._headers_timer = self.loop.call_later(self.headers_timeout_s, self._too_slow)

    def _headers_there(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _too_slow(self) -> None:
        self._headers_timer = None
        if not self.transport.is_closing():
            detail = f"the headers did not arrive within {self.headers_timeout_s:g} s (serve.headers_timeout_s)"
            self._refuse(Problem(408, "too-slow", detail))

    def _refuse(self, problem: Problem) -> None:
        """Answer without the application, and close."""
        self.refused(problem.kind)
        answer = problem.response()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(name, value) for name, value in answer.raw_headers if name != b"connection"]
            head = h11.Response(status_code=problem.status, headers=[*headers, (b"connection", b"close")])
            parts = (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        self.transport.close()


def bounded(*, connections_max: int, headers_timeout_s: float, refused: Any) -> type[BoundedProtocol]:
    """The protocol with these limits."""
    return type(
        "Protocol",
        (BoundedProtocol,),
        {"connections_max": connections_max, "headers_timeout_s": headers_timeout_s, "refused": staticmethod(refused)},
    )
