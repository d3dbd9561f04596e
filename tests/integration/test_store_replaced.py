"""A store that was replaced is told over HTTP as it is in the library: 410 at every address, and StoreReplaced in the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import RedisServer
from tests.serving import Served, event, messages, served, settings_for
from thermocline import remote
from thermocline.errors import ConfigError, PartialAppend, StoreReplaced, ThermoclineError, TierCorrupt
from thermocline.ingest.append import Client
from thermocline.serve.sandbox import Sandbox
from thermocline.store import Store

TOLD = "Redis was wiped since: begin anew"
SSE = {"Accept": "text/event-stream"}
FOR_PROGRAMS: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    "append": lambda client: client.post("/v1/events", json=event()),
    "append expecting": lambda client: client.post("/v1/events?expected_seq=1", json=event()),
    "atomic append": lambda client: client.post("/v1/events?atomic=true", json=[event(), event()]),
    "conversation": lambda client: client.get("/v1/conversations/c/events"),
    "query": lambda client: client.post("/v1/query", json={"sql": "SELECT 1"}),
    "tail": lambda client: client.get("/v1/tail?conversation_id=c", headers=SSE),
    "status": lambda client: client.get("/v1/status"),
    "timeline that follows": lambda client: client.get("/conversation/follow?id=c", headers=SSE),
}
FOR_PEOPLE = (
    "/",
    "/live",
    "/conversations",
    "/conversations?q=a&within=content",
    "/conversation?id=c",
    "/conversation/head?id=c",
)
CALLS: dict[str, Callable[[remote.RemoteStore], object]] = {
    "append": lambda store: store.append("c", "t"),
    "append expecting": lambda store: store.append("c", "t", expected_seq=1),
    "sql": lambda store: store.sql("SELECT 1"),
    "recent": lambda store: store.recent("c"),
    "tail": lambda store: store.tail("c"),
    "status": lambda store: store.status(),
}


@pytest.fixture
def running(tmp_path: Path, server: RedisServer) -> Iterator[Served]:
    with served(settings_for(server.url, tmp_path / "data", requests_per_s=0)) as found:
        yield found


def broken(patch: pytest.MonkeyPatch, running: Served, error: ThermoclineError) -> None:
    """Whatever the server asks of its store ends with this error."""

    def ends(*_: Any, **__: Any) -> Any:
        raise error

    for kind, names in (
        (Store, ("sql", "recent", "search", "tail", "status", "usage", "whereabouts", "spread", "estimate")),
        (Client, ("append", "append_many")),
        (Sandbox, ("run",)),
    ):
        for name in names:
            patch.setattr(kind, name, ends)
    running.service._status = None


def test_it_is_410_at_every_address(running: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, running, StoreReplaced(TOLD))
    with running.client() as client:
        for name, ask in FOR_PROGRAMS.items():
            answer = ask(client)
            assert answer.status_code == 410, (name, answer.text)
            assert answer.headers["content-type"] == "application/problem+json", name
            found = answer.json()
            assert (found["type"], found["status"]) == ("urn:thermocline:problem:store-replaced", 410), name
            assert found["detail"] == TOLD
        for path in FOR_PEOPLE:
            page = client.get(path)
            assert page.status_code == 410, (path, page.text)
            assert TOLD in page.text
        answered = client.post("/sql", data={"sql": "SELECT 1"})
        assert (answered.status_code, TOLD in answered.text) == (410, True)


@pytest.mark.parametrize("error", [StoreReplaced, TierCorrupt, ConfigError])
def test_the_client_raises_what_the_library_would(
    running: Served, monkeypatch: pytest.MonkeyPatch, error: type[ThermoclineError]
) -> None:
    broken(monkeypatch, running, error(TOLD))
    with remote.connect(running.url) as store:
        for call in CALLS.values():
            with pytest.raises(error, match="wiped since"):
                call(store)
        with pytest.raises((PartialAppend, ConfigError), match="wiped since") as many:
            store.append_many([event(), event()])
        assert isinstance(getattr(many.value, "cause", many.value), error)


def test_a_tail_whose_redis_is_wiped_ends_with_it_and_its_position_is_refused(running: Served) -> None:
    with running.client() as client, remote.connect(running.url) as store:
        store.append("c", "t", "one")
        with client.stream("GET", "/v1/tail?start=begin", headers=SSE) as stream, store.tail(start="begin") as tail:
            told = messages(stream.iter_lines())
            position = next(told).id
            while not tail.read():
                pass
            running.service.store.tiers.hot.drop()
            last = next(told)
            assert (last.event, last.data["status"]) == ("problem", 410)
            with pytest.raises(StoreReplaced, match="wiped"):
                while True:
                    tail.read()
        answer = client.get("/v1/tail", params={"start": position}, headers=SSE)
        assert (answer.status_code, answer.json()["type"]) == (410, "urn:thermocline:problem:store-replaced")
        with pytest.raises(StoreReplaced, match="begin anew"):
            store.tail(start=position)
