"""An HTTP server between the product and an S3 server, which does to chosen requests what networks and servers do.

    with Front(bucket.endpoint_url, lambda kind, number: DROP if (kind, number) == ("PUT", 1) else None) as front:
        S3Cold(..., settings with endpoint_url=front.url)
    front.count["PUT"]        # how often it was asked
    front.met["PUT"]          # how often a fault was really done to it

Without an upstream every request needs an answer from the plan.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit


class Answer(NamedTuple):
    """What is said instead of asking upstream."""

    status: int
    code: str = ""
    text: str = ""
    headers: Mapping[str, str] = {}
    body: bytes | None = None


DROP = "drop"
"""Upstream does it, and the connection breaks before the reply."""
DROP_BEFORE = "drop before"
"""The connection breaks, and upstream never hears of it."""
HANG = "hang"
"""Upstream does it, and no reply ever comes."""
CUT = "cut"
"""The connection breaks within the body of the reply: before its first byte, in the middle, or before its last."""
CUT_REQUEST = "cut request"
"""The connections break within the body of the request: so upstream gets a part of it."""
FLIP = "flip"
"""One bit of the body of the reply is another one."""
FLIP_REQUEST = "flip request"
"""One bit of the body of the request is another one."""
TRICKLE = "trickle"
"""The body of the reply comes a few bytes at a time, for ever."""
SLOW = "slow"
"""The reply, from its first line on, comes a byte at a time: each soon after the last one, all of them far too late."""
SLOW_BYTE_S = 0.05
Action = Answer | str | None

Plan = Callable[[str, int], Action]
"""What happens to a request: by its kind, and the how-manieth of that kind it is."""


def kind_of(method: str, target: str) -> str:
    """PUT, GET, HEAD, DELETE of an object (HEAD: or of the bucket); LIST, DELETES (many at once); of multipart uploads CREATE,
    PART, COMPLETE, ABORT, UPLOADS (the list of those under way)."""
    query = parse_qs(urlsplit(target).query, keep_blank_values=True)
    kinds = {
        "GET": {"uploads": "UPLOADS", "list-type": "LIST"},
        "POST": {"delete": "DELETES", "uploads": "CREATE", "uploadId": "COMPLETE"},
        "PUT": {"partNumber": "PART"},
        "DELETE": {"uploadId": "ABORT"},
    }
    return next((kind for name, kind in kinds.get(method, {}).items() if name in query), method)


class Front:
    """Serves while it is entered.

    dropped_headers  which upstream does not get to see
    checks           whether it refuses a body that is not what x-amz-content-sha256 says: servers do, moto's does not
    seed             of where bodies are cut, and which bits are flipped
    """

    def __init__(
        self, upstream: str | None, plan: Plan, *, dropped_headers: tuple[str, ...] = (), checks: bool = False, seed: int = 0
    ) -> None:
        self.plan = plan
        self.count: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.upstream = urlsplit(upstream).netloc if upstream else None
        self.dropped_headers = dropped_headers
        self.checks = checks
        self.over = threading.Event()
        self.dice = random.Random(seed)
        self._lock = threading.Lock()
        front = self

        class Handler(_Handler):
            served_by = front

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def action(self, kind: str) -> Action:
        with self._lock:
            self.count[kind] += 1
            return self.plan(kind, self.count[kind])

    def arm(self, plan: Plan) -> None:
        """Follow another plan from now on, and count anew."""
        with self._lock:
            self.plan = plan
            self.count.clear()

    def lift(self) -> None:
        """No more faults; what hangs or is slow is broken off."""
        self.arm(lambda kind, number: None)
        self.over.set()
        self.over = threading.Event()

    def __enter__(self) -> Front:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are what the tests are about; anything else is a bug of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Reply(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    content: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served_by: Front

    def answer(self) -> None:
        front, over = self.served_by, self.served_by.over
        wanted = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(wanted)
        if len(body) < wanted:
            self.close_connection = True
            return
        kind = kind_of(self.command, self.path)
        action = front.action(kind)
        if action in (CUT_REQUEST, FLIP_REQUEST) and not body:
            action = None
        reply = self._reply(body, action)
        if action in (CUT, FLIP) and (reply is None or not reply.content or self.command == "HEAD"):
            action = None
        front.met[kind] += action is not None
        if action == HANG:
            over.wait()
        if reply is None or action in (DROP, HANG):
            self.close_connection = True
        else:
            self._say(reply, action, over)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

    def _reply(self, body: bytes, action: Action) -> Reply | None:
        """Upstream's, or what is said instead; None when there is none to have."""
        if isinstance(action, Answer):
            xml = f"<Error><Code>{action.code}</Code><Message>{action.text}</Message></Error>".encode()
            headers = {"Content-Type": "application/xml", **action.headers}
            return Reply(action.status, list(headers.items()), xml if action.body is None else action.body)
        if action == DROP_BEFORE:
            return None
        if action == CUT_REQUEST:
            self._ask(body, len(body) // 2)
            return None
        if action == FLIP_REQUEST:
            body = self._flipped(body)
        stated = self.headers.get("x-amz-content-sha256", "")
        if self.served_by.checks and len(stated) == 64 and stated != hashlib.sha256(body).hexdigest():
            return self._reply(b"", Answer(400, "XAmzContentSHA256Mismatch", "The provided header does not match the body."))
        return self._ask(body, len(body))

    def _ask(self, body: bytes, sent_bytes: int) -> Reply | None:
        assert self.served_by.upstream is not None, "no upstream, and the plan has no answer"
        gone = ("expect", "connection", *self.served_by.dropped_headers)
        upstream = http.client.HTTPConnection(self.served_by.upstream, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in gone:
                    upstream.putheader(name, value)
            upstream.endheaders(body[:sent_bytes] or None)
            if sent_bytes < len(body):
                return None
            reply = upstream.getresponse()
            content = reply.read()
            headers = [(name, value) for name, value in reply.getheaders() if name.lower() not in _OF_CONNECTION]
            return Reply(reply.status, headers, content)
        finally:
            upstream.close()

    def _say(self, reply: Reply, action: Action, over: threading.Event) -> None:
        names = {name.lower() for name, _ in reply.headers}
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(reply.content)))
        head = b"".join(self._headers_buffer) + b"\r\n"  # type: ignore[attr-defined]
        self._headers_buffer = []
        content = b"" if self.command == "HEAD" else reply.content
        if action == CUT:
            last = len(content) - 1
            content = content[: self.served_by.dice.choice((0, last // 2, last))]
        elif action == FLIP:
            content = self._flipped(content)
        if action in (CUT, TRICKLE, SLOW):
            self.close_connection = True
        if action == TRICKLE:
            self.wfile.write(head)
            self._drip(content, 4096, over)
        elif action == SLOW:
            self._drip(head + content, 1, over)
        else:
            self.wfile.write(head + content)

    def _flipped(self, content: bytes) -> bytes:
        place = self.served_by.dice.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)

    def _drip(self, content: bytes, piece_bytes: int, over: threading.Event) -> None:
        for at in range(0, len(content), piece_bytes):
            if over.wait(SLOW_BYTE_S):
                return
            self.wfile.write(content[at : at + piece_bytes])

    def log_message(self, format: str, *args: object) -> None:
        pass


_OF_CONNECTION = ("connection", "transfer-encoding")
