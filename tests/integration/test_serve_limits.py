"""Limits and access over real connections: what is refused before it is parsed, who is let in, what is recorded of it."""

from __future__ import annotations

import json
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, event, served, settings_for
from tests.waiting import wait_until
from thermocline.serve.audit import FILE_NAME, TEXT_MAX, Audit
from thermocline.serve.tokens import create

Serve = Callable[..., Any]
BIG = "x" * 900_000
POST_QUERY = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(redis_binaries()[-1], tmp_path_factory.mktemp("serve") / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits") / "data"


@pytest.fixture(scope="module")
def tight(redis: RedisServer, place: Path) -> Iterator[Served]:
    """A server with narrow limits."""
    limits = {
        "headers_bytes_max": 1024,
        "headers_timeout_s": 2,
        "body_timeout_s": 2,
        "write_timeout_s": 2,
        "keep_alive_s": 2,
        "connections_max": 20,
        "tails_max": 2,
        "answers_max": 1,
        "requests_per_s": 0,
    }
    with served(settings_for(redis.url, place, **limits)) as running:
        yield running


@contextmanager
def connected(server: Served) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), 60) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What is sent until the other side closes, which is a reset when it has not read all that it was sent."""
    found = b""
    try:
        while chunk := connection.recv(65_536):
            found += chunk
    except ConnectionResetError:
        assert found
    return found


def status_of(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1])


def test_headers_are_bounded(tight: Served) -> None:
    with tight.client() as client:
        answer = client.get("/healthz", headers={"X": "y" * 1024})
        assert (answer.status_code, answer.json()["type"]) == (431, "urn:thermocline:problem:headers-too-large")
        assert client.get("/healthz?" + "q" * 1024).status_code == 431
    with connected(tight) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(ConnectionError):  # it answers and closes before all is sent
            for _ in range(12):
                connection.sendall(b"X: " + b"y" * 50_000 + b"\r\n")
        assert status_of(everything(connection)) == 431


def test_headers_that_do_not_come_end_the_connection(tight: Served) -> None:
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
        with connected(tight) as connection:
            connection.sendall(sent)
            raw = everything(connection)
            assert status_of(raw) == 408
            assert b"serve.headers_timeout_s" in raw


def test_a_body_that_does_not_come_ends_the_request(tight: Served) -> None:
    with connected(tight) as connection:
        head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        connection.sendall(head)
        raw = everything(connection)
    assert status_of(raw) == 408
    assert b"serve.body_timeout_s" in raw


def test_what_is_no_http_is_refused(tight: Served) -> None:
    with connected(tight) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert status_of(everything(connection)) == 400


def test_more_connections_than_there_may_be_are_told_so(tight: Served) -> None:
    open_ones = [connected(tight) for _ in range(25)]
    connections = [one.__enter__() for one in open_ones]
    try:
        raw = [everything(connection) for connection in connections]
        statuses = sorted(status_of(one) for one in raw)
        assert statuses.count(503) >= 1
        assert set(statuses) <= {408, 503}
        assert any(b"serve.connections_max" in one and b"retry-after: 1" in one.lower() for one in raw)
    finally:
        for one in open_ones:
            one.__exit__(None, None, None)
    with tight.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_name_that_is_not_ours_is_refused(tight: Served) -> None:
    with tight.client() as client:
        answer = client.get("/v1/status", headers={"Host": "evil.example.org"})
        assert answer.status_code == 421
        assert client.post("/v1/events", json=event(), headers={"Origin": "https://evil.example.org"}).status_code == 403


def test_tails_are_so_many_and_no_more(tight: Served) -> None:
    with tight.client() as client, client.stream("GET", "/v1/tail") as one, client.stream("GET", "/v1/tail") as two:
        assert (one.status_code, two.status_code) == (200, 200)
        answer = client.get("/v1/tail")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "serve.tails_max" in answer.json()["detail"]
    wait_until(lambda: tight.service.tails.taken == 0, 300, "the tails are closed")


def test_a_reader_that_does_not_read_is_closed_and_can_come_back(tight: Served) -> None:
    for _ in range(8):
        tight.service.client.append("slow", "t", BIG)
    with tight.client() as client:
        with connected(tight) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /v1/tail?conversation_id=slow&start=begin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(lambda: tight.service.tails.taken == 1, 300, "the tail is open")
            wait_until(lambda: tight.service.tails.taken == 0, 300, "the tail is closed")
        assert "thermocline_slow_readers_total 1.0" in client.get("/metrics").text
        with client.stream("GET", "/v1/tail", params={"conversation_id": "slow", "start": "begin"}) as stream:
            assert sum(line.startswith("id: ") for line, _ in zip(stream.iter_lines(), range(12), strict=False)) >= 2


def test_an_answer_that_is_not_read_holds_no_query(tight: Served) -> None:
    body = json.dumps({"sql": "SELECT repeat('x', 1000000) AS x FROM range(30)"}).encode()
    with connected(tight) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(POST_QUERY % len(body) + body)
        wait_until(lambda: tight.service.answers.taken == 1, 300, "the answer is being sent")
        assert tight.service.queries.taken == 0
        wait_until(lambda: tight.service.answers.taken == 0, 300, "the answer is let go")


LONG = json.dumps({"sql": "SELECT count(*) FROM range(1000000000000)", "id": "long"}).encode()


def test_a_query_ends_when_its_client_leaves(tight: Served) -> None:
    with connected(tight) as connection:
        connection.sendall(POST_QUERY % len(LONG) + LONG)
        wait_until(lambda: tight.service.sandbox.running == 1, 300, "the query runs")
    wait_until(lambda: tight.service.sandbox.running == tight.service.queries.taken == 0, 300, "the query has ended")


def test_a_query_is_cancelled_by_its_id_and_an_id_is_used_once_at_a_time(tight: Served) -> None:
    with connected(tight) as connection, tight.client() as client:
        connection.sendall(POST_QUERY % len(LONG) + LONG)
        wait_until(lambda: tight.service.sandbox.running == 1, 300, "the query runs")
        assert client.post("/v1/query", content=LONG, headers={"Content-Type": "application/json"}).status_code == 409
        assert client.delete("/v1/query/long").status_code == 204
        raw = b""
        while b"query-cancelled" not in raw and (more := connection.recv(65_536)):  # headers and body may come one by one
            raw += more
        assert (status_of(raw), b"query-cancelled" in raw) == (409, True)
        assert client.delete("/v1/query/long").status_code == 404


# Tokens over HTTP


@pytest.fixture(scope="module")
def tokens(place: Path) -> dict[str, str]:
    folder = place.with_name("guarded")
    return {name: create(folder, name, [name]).text for name in ("append", "query", "admin")}


@pytest.fixture(scope="module")
def guarded(redis: RedisServer, place: Path, tokens: dict[str, str]) -> Iterator[Served]:
    """A server that asks for tokens, on all addresses."""
    settings = settings_for(redis.url, place.with_name("guarded"), host="0.0.0.0")
    with served(settings.model_copy(update={"namespace": "guarded"})) as running:
        yield running._replace(url=running.url.replace("0.0.0.0", "127.0.0.1"))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/events", "append"),
        ("GET", "/v1/conversations/c/events", "query"),
        ("POST", "/v1/query", "query"),
        ("DELETE", "/v1/query/x", "query"),
        ("GET", "/v1/tail", "query"),
        ("GET", "/v1/status", "query"),
        ("GET", "/metrics", "query"),
    ],
)
def test_everything_but_health_needs_its_scope(
    guarded: Served, tokens: dict[str, str], method: str, path: str, scope: str
) -> None:
    other = "append" if scope == "query" else "query"
    with guarded.client() as client:
        without = client.request(method, path)
        assert (without.status_code, without.headers["www-authenticate"]) == (401, 'Bearer realm="thermocline"')
        assert client.request(method, path, headers=bearer("tc_wrong")).status_code == 401
        assert client.request(method, path, headers=bearer(tokens[other])).status_code == 403
        for good in (tokens[scope], tokens["admin"]):
            with client.stream(method, path, headers=bearer(good)) as answer:
                assert answer.status_code not in (401, 403)


def test_health_and_the_document_need_no_token(guarded: Served) -> None:
    with guarded.client() as client:
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.json")] == [200, 200, 200]


def test_more_requests_than_there_may_be_have_to_wait(guarded: Served, tokens: dict[str, str]) -> None:
    with guarded.client(headers=bearer(tokens["append"])) as client:
        assert client.get("/v1/events").status_code == 405
        guarded.service.rates.wait_s(f"token:{tokens['append'].split('_')[1]}", time.monotonic() + 3600)  # all of an hour is used
        answer = client.get("/v1/events")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 60
    assert "serve.requests_per_s" in answer.json()["detail"]


def lines_of(server: Served) -> list[dict[str, Any]]:
    path = server.service.settings.namespace_dir / FILE_NAME
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_queries_are_recorded_with_who_asked_and_what_came_of_it(guarded: Served, tokens: dict[str, str]) -> None:
    with guarded.client(headers=bearer(tokens["query"])) as client:
        wait_until(lambda: client.post("/v1/query", json={"sql": "SELECT 41 + 1 AS n"}).status_code == 200, 300, "an answer")
        wait_until(lambda: client.post("/v1/query", json={"sql": "SELEC"}).status_code == 400, 300, "a refusal")
    asked = ("SELECT 41 + 1 AS n", "SELEC")

    def recorded() -> list[dict[str, Any]]:
        return [line for line in lines_of(guarded) if line.get("sql") in asked and line["status"] != 429]

    wait_until(lambda: len(recorded()) == 2, 30, "a line for each")  # written when the answer is on its way already
    good, bad = recorded()
    assert (good["status"], good["rows"], good["truncated"]) == (200, 1, False)
    assert good["caller"].startswith("token:")
    assert good["address"] == "127.0.0.1"
    assert bad["status"] == 400
    path = guarded.service.settings.namespace_dir / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(token in path.read_text() for token in tokens.values())


def test_the_audit_log_is_rotated_and_so_many_are_kept(tmp_path: Path) -> None:
    settings = settings_for("redis://127.0.0.1:1", tmp_path, audit_bytes_max=4096, audit_files_max=2)
    audit = Audit(settings)
    for number in range(200):
        audit.write(caller="token:x", number=number, sql="y" * 100)
    files = sorted(settings.namespace_dir.glob(f"{FILE_NAME}*"))
    assert [file.name for file in files if not file.name.endswith(".lock")] == [FILE_NAME, f"{FILE_NAME}.1", f"{FILE_NAME}.2"]
    assert all(file.stat().st_size <= 4096 for file in files)
    oldest_first = [settings.namespace_dir / f"{FILE_NAME}{end}" for end in (".2", ".1", "")]
    numbers = [json.loads(line)["number"] for file in oldest_first for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 200))


def test_what_is_long_is_cut_in_the_audit_log(tmp_path: Path) -> None:
    settings = settings_for("redis://127.0.0.1:1", tmp_path)
    Audit(settings).write(sql="ü" * 100_000, odd="\ud800")
    [line] = (settings.namespace_dir / FILE_NAME).read_text().splitlines()
    assert len(json.loads(line)["sql"]) < TEXT_MAX + 50


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    settings = settings_for("redis://127.0.0.1:1", tmp_path)
    (settings.namespace_dir / FILE_NAME).mkdir(parents=True)
    audit = Audit(settings)
    audit.write(caller="x")
    assert (audit.lines, audit.failures) == (0, 1)


def test_answers_and_errors_name_no_token(guarded: Served, tokens: dict[str, str]) -> None:
    with guarded.client(headers=bearer(tokens["admin"])) as client:
        texts = [
            client.get(path).text for path in ("/v1/status", "/metrics", "/nothing", f"/v1/conversations/{'c' * 300}/events")
        ]
    assert not any(tokens["admin"] in text for text in texts)
    assert httpx.get(f"{guarded.url}/v1/status", headers=bearer(tokens["admin"] + "x")).status_code == 401
