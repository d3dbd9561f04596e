"""Whatever clients leave unread or unsent, appends go through, no place is lost, and what the server holds is bounded."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve_process import serving
from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, event, served, settings_for
from tests.waiting import wait_until
from thermocline.serve.server import UNSENT_BYTES_MAX

LIMITS = {"write_timeout_s": 600, "body_timeout_s": 600, "headers_timeout_s": 600, "tails_max": 20, "answers_max": 20}
CONTENT = "x" * 10_000
EVENTS = 1000
PAGE_AND_BUFFERS = 512 << 10
"""Of one tail: a block of 256 KiB, which is more than serve.tail_bytes_max, as Python values, and what is on its way."""
UNREAD_MAX = 512 << 10
"""What a client that does not read is sent at most: until its buffers, ours and the system's are full."""
SHARED = 128 << 20
"""Of all of them: threads that read pages, and their DuckDB."""
AT_REST_S = 1.0
"""What has not changed for so long will not."""
BODY = json.dumps({"sql": "SELECT * FROM events LIMIT 1000"}).encode()
POST = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

KINDS: dict[str, bytes] = {
    "a tail that is not read": b"GET /v1/tail?start=begin HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a page that is not read": b"GET /v1/conversations/c/events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an answer that is not read": b"POST /v1/query HTTP/1.1\r\n" + POST % len(BODY) + BODY,
    "a body that does not come": b"POST /v1/events HTTP/1.1\r\n" + POST % 1_000_000 + b"[" * 100,
    "headers that do not come": b"GET /v1/status HTTP/1.1\r\nHost: local",
    "nothing": b"",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("slow")
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    try:
        with served(settings_for(redis.url, folder / "data", **LIMITS)) as running:
            for _ in range(EVENTS // 100):
                running.service.client.append_many([event(content=CONTENT)] * 100)
            yield running
    finally:
        redis.stop()


@contextmanager
def idle(server_url: str, sent: bytes) -> Iterator[None]:
    """A connection that sends this and then nothing, and reads nothing."""
    host, port = server_url.removeprefix("http://").rsplit(":", 1)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(sent)
        yield


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=18))
def test_appends_go_through_whatever_others_leave_unread(server: Served, kinds: list[str]) -> None:
    service = server.service
    with ExitStack() as opened, server.client() as client:
        for kind in kinds:
            opened.enter_context(idle(server.url, KINDS[kind]))
        tails = kinds.count("a tail that is not read")
        answers = kinds.count("an answer that is not read") + kinds.count("a page that is not read")
        wait_until(lambda: service.tails.taken == tails and service.answers.taken == answers, 900, "they are under way")
        for number in range(5):
            answer = client.post("/v1/events", json=event("live", content=str(number)))
            assert (answer.status_code, answer.json()["stored"]) == (200, 1)
        assert service.queries.taken == 0, "an answer that is not read holds no query"
        pools = (service.appending, service.reading, service.tailing, service.querying)
        wait_until(lambda: not any(pool.borrowed_tokens for pool in pools), 900, "nobody who does not read holds a thread")
        assert service.bodies.taken <= service.bodies.size
    wait_until(lambda: service.tails.taken == service.answers.taken == service.bodies.taken == 0, 900, "all is given back")


def test_of_what_a_client_stops_to_read_the_system_holds_little(server: Served) -> None:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        connection.connect((host, int(port)))
        connection.sendall(KINDS["a page that is not read"])
        read = 0
        while read < 4 << 20:  # as fast as it comes: that is when the system makes room for much
            read += len(connection.recv(1 << 16))
        held, since_s = unsent(int(port)), time.monotonic()

        def at_rest() -> bool:
            nonlocal held, since_s
            if (now := unsent(int(port))) != held:
                held, since_s = now, time.monotonic()
            return time.monotonic() - since_s >= AT_REST_S

        wait_until(at_rest, 60, "the system gets no more to hold")
        assert 0 < held <= 2 * UNSENT_BYTES_MAX


def unsent(port: int) -> int:
    """Bytes that the system holds for the clients of a port of this machine, by /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if int(row[1].partition(":")[2], 16) == port)


def test_two_hundred_slow_readers_cost_the_memory_that_the_limits_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("many")
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    try:
        settings_given = {"THERMOCLINE_REDIS_URL": redis.url, "THERMOCLINE_SERVE__WRITE_TIMEOUT_S": "600"}
        with serving(folder, "--no-worker", **settings_given) as running, ExitStack() as opened:
            import httpx

            client = opened.enter_context(httpx.Client(base_url=running.url, timeout=600))
            for _ in range(EVENTS // 100):
                client.post("/v1/events", json=[event(content=CONTENT)] * 100).raise_for_status()
            with client.stream("GET", "/v1/tail?start=begin") as first:
                lines = first.iter_lines()
                next(lines)
            before = psutil.Process(running.process.pid).memory_info().rss
            for _ in range(200):
                opened.enter_context(idle(running.url, KINDS["a tail that is not read"]))

            def open_tails() -> bool:
                return 'thermocline_limit_used{limit="tails"} 200.0' in client.get("/metrics").text

            wait_until(open_tails, 600, "200 tails are open")
            for number in range(20):
                assert client.post("/v1/events", json=event("live", content=str(number))).status_code == 200
            grown = psutil.Process(running.process.pid).memory_info().rss - before
            unread = 200 * EVENTS * len(CONTENT)
            assert grown < 200 * PAGE_AND_BUFFERS + SHARED < unread / 5, f"{grown >> 20} MiB"
            sent = next(
                line for line in client.get("/metrics").text.splitlines() if line.startswith("thermocline_tail_events_total ")
            )
            assert float(sent.split()[1]) * len(CONTENT) < 200 * UNREAD_MAX, sent
    finally:
        redis.stop()
