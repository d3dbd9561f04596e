"""Whatever clients leave unread or unsent, appends go through, no place is lost, and what the server holds is bounded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve_process import serving
from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, event, served, settings_for
from tests.waiting import wait_until

LIMITS = {"write_timeout_s": 600, "body_timeout_s": 600, "headers_timeout_s": 600, "tails_max": 20, "answers_max": 20}
CONTENT = "x" * 10_000
EVENTS = 1000
PAGE_AND_BUFFERS = 1 << 20
"""Of one tail: 256 KiB of text (serve.tail_bytes_max) as Python values, and what is on its way."""
SHARED = 128 << 20
"""Of all of them: threads that read pages, and their DuckDB."""
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
        tails, answers = kinds.count("a tail that is not read"), kinds.count("an answer that is not read")
        wait_until(lambda: service.tails.taken == tails and service.answers.taken == answers, 900, "they are under way")
        for number in range(5):
            answer = client.post("/v1/events", json=event("live", content=str(number)))
            assert (answer.status_code, answer.json()["stored"]) == (200, 1)
        assert service.queries.taken == 0, "an answer that is not read holds no query"
        pools = (service.appending, service.reading, service.tailing, service.querying)
        wait_until(lambda: not any(pool.borrowed_tokens for pool in pools), 900, "nobody who does not read holds a thread")
        assert service.bodies.taken <= service.bodies.size
    wait_until(lambda: service.tails.taken == service.answers.taken == service.bodies.taken == 0, 900, "all is given back")


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
    finally:
        redis.stop()
