"""An HTTP server between the product and an S3 server, which does to chosen requests what networks and servers do.

    with Front(bucket.endpoint_url, lambda method, number: DROP if (method, number) == ("PUT", 1) else None) as front:
        S3Cold(..., settings with endpoint_url=front.url)
    front.count["PUT"]        # how often it was asked

Without an upstream every request needs an answer from the plan.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """What is said instead of asking upstream."""

    status: int
    code: str = ""
    text: str = ""
    headers: Mapping[str, str] = {}
    body: bytes | None = None


DROP = "drop"
"""Upstream does it, and the connection breaks before the reply."""
HANG = "hang"
"""Upstream does it, and no reply ever comes."""
CUT = "cut"
"""The connection breaks within the body of the reply."""
TRICKLE = "trickle"
"""The body of the reply comes a few bytes at a time, for ever."""
Action = Answer | str | None

Plan = Callable[[str, int], Action]
"""What happens to a request: by its method, and the how-manieth of that method it is."""


class Front:
    """Serves while it is entered.

    dropped_headers  which upstream does not get to see
    """

    def __init__(self, upstream: str | None, plan: Plan, *, dropped_headers: tuple[str, ...] = ()) -> None:
        self.plan = plan
        self.count: Counter[str] = Counter()
        self.upstream = urlsplit(upstream).netloc if upstream else None
        self.dropped_headers = dropped_headers
        self.over = threading.Event()
        self._lock = threading.Lock()
        front = self

        class Handler(_Handler):
            served_by = front

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def action(self, method: str) -> Action:
        with self._lock:
            self.count[method] += 1
            return self.plan(method, self.count[method])

    def __enter__(self) -> Front:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served_by: Front

    def answer(self) -> None:
        front = self.served_by
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action = front.action(self.command)
        if isinstance(action, Answer):
            self._say(action)
            return
        status, headers, content = self._ask(body)
        if action in (DROP, HANG):
            if action == HANG:
                front.over.wait()
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if action == CUT:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif action == TRICKLE:
            self._trickle(content)
        else:
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

    def _say(self, answer: Answer) -> None:
        xml = f"<Error><Code>{answer.code}</Code><Message>{answer.text}</Message></Error>".encode()
        content = xml if answer.body is None else answer.body
        self.send_response_only(answer.status)
        for name, value in {"Content-Type": "application/xml", "Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        assert self.served_by.upstream is not None, "no upstream, and the plan has no answer"
        gone = ("expect", "connection", *self.served_by.dropped_headers)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in gone}
        upstream = http.client.HTTPConnection(self.served_by.upstream, timeout=30)
        try:
            upstream.request(self.command, self.path, body or None, headers)
            reply = upstream.getresponse()
            content = reply.read()
            sent = [
                (name, value) for name, value in reply.getheaders() if name.lower() not in ("connection", "transfer-encoding")
            ]
            if not any(name.lower() == "content-length" for name, _ in sent):
                sent.append(("Content-Length", str(len(content))))
            return reply.status, sent, content
        finally:
            upstream.close()

    def _trickle(self, content: bytes) -> None:
        self.close_connection = True
        for at in range(0, len(content), 4096):
            if self.served_by.over.wait(0.05):
                return
            try:
                self.wfile.write(content[at : at + 4096])
                self.wfile.flush()
            except OSError:
                return

    def log_message(self, format: str, *args: object) -> None:
        pass
