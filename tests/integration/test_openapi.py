"""/openapi.json is true: it has every route and no other, and schemathesis finds nothing that the server cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from starlette.routing import Route

from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, event, served, settings_for
from thermocline.config import load
from thermocline.serve.app import api_routes
from thermocline.serve.openapi import document

EXAMPLES = 12
STREAMED = "/v1/tail"
OPERATIONS = [
    (path, method) for path, methods in document(load(environ={}))["paths"].items() if path != STREAMED for method in methods
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    try:
        with served(settings_for(redis.url, folder / "data", requests_per_s=0)) as running:
            with running.client() as client:
                client.post("/v1/events", json=[event("0", content="a", metadata={"b": 1.5}, duration_ms=2)]).raise_for_status()
            yield running
    finally:
        redis.stop()


def test_the_document_is_one() -> None:
    from openapi_spec_validator import validate

    validate(document(load(environ={})))


def test_the_document_has_every_route_and_no_other() -> None:
    routes = set()
    for found in api_routes():
        assert isinstance(found, Route)
        path = found.path.replace(":text}", "}")
        routes |= {(path, method.lower()) for method in found.methods or () if method != "HEAD"}
    documented = {(path, method) for path, methods in document(load(environ={}))["paths"].items() for method in methods}
    assert routes == documented


def test_the_server_gives_the_document(server: Served) -> None:
    assert httpx.get(f"{server.url}/openapi.json").json() == document(server.service.settings)


def tried(server: Served, path: str, method: str, examples: int) -> None:
    """Requests as the document has them, and others, each answered as it says."""
    import schemathesis  # here: every worker of pytest imports this file
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    def attempt(case: Any) -> None:
        case.call_and_validate(base_url=server.url, checks=wanted, timeout=600)

    generated = schemathesis.openapi.from_dict(document(server.service.settings))
    from hypothesis import given

    given(case=generated[path][method.upper()].as_strategy())(attempt)()


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
def test_requests_made_from_the_document_find_no_failure(server: Served, path: str, method: str) -> None:
    tried(server, path, method, EXAMPLES)


@pytest.mark.long
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
def test_many_requests_made_from_the_document_find_no_failure(server: Served, path: str, method: str) -> None:
    tried(server, path, method, 500)


def test_a_tail_is_refused_or_begins_whatever_is_asked(server: Served) -> None:
    odd = [
        "",
        "now",
        "begin",
        "0",
        "-1",
        "9" * 400,
        "2026-11-20",
        "9999-12-31T23:59:59Z",
        "0001-01-01T00:00:00+14:00",
        "t1.",
        "\x7f",
        "ü",
    ]
    with server.client() as client:
        for start in odd:
            for conversation in ({}, {"conversation_id": "0"}, {"conversation_id": "#"}, {"conversation_id": ""}):
                with client.stream("GET", STREAMED, params={"start": start, **conversation}) as answer:
                    assert answer.status_code in (200, 400, 422), (start, conversation, answer.read())


def test_the_document_does_not_depend_on_the_working_directory(tmp_path: Path) -> None:
    assert document(load({"data_dir": tmp_path}, environ={})) == document(load(environ={}))
