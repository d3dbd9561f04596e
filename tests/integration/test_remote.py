"""The thin client: what the library gives, from a server; appends that are sent again store nothing twice."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, served, settings_for
from tests.waiting import wait_until
from thermocline import remote
from thermocline.errors import (
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    QueryRefused,
    SequenceConflict,
    TierUnavailable,
)
from thermocline.event import COLUMN_NAMES, Event
from thermocline.remote_tail import Followed, RemoteTail
from thermocline.serve.tokens import create


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("remote")
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    try:
        with served(settings_for(redis.url, folder / "data", requests_per_s=0)) as running:
            yield running
    finally:
        redis.stop()


@pytest.fixture
def store(server: Served) -> Iterator[remote.RemoteStore]:
    with remote.connect(server.url) as found:
        yield found


@pytest.fixture
def name() -> str:
    return f"talk/{uuid.uuid4().hex}"


class Losing(httpx.HTTPTransport):
    """A line that loses the answers to some requests, or the requests."""

    def __init__(self, *, answers: int = 0, requests: int = 0) -> None:
        super().__init__()
        self.answers = answers
        self.requests = requests
        self.sent = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        if self.requests:
            self.requests -= 1
            raise httpx.ConnectError("no line")
        answer = super().handle_request(request)
        if self.answers:
            self.answers -= 1
            answer.read()
            answer.close()
            raise httpx.ReadError("lost")
        return answer


def losing(server: Served, line: Losing, deadline_s: float = 60) -> remote.RemoteStore:
    return remote.RemoteStore(httpx.Client(base_url=server.url, transport=line, timeout=60), deadline_s=deadline_s)


def test_it_has_the_librarys_names(server: Served, store: remote.RemoteStore) -> None:
    import inspect

    from thermocline.ingest.append import Client

    for ours, theirs in ((remote.RemoteStore.append, Client.append), (remote.RemoteStore.append_many, Client.append_many)):
        assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys()
    kept = {"query", "params", "require", "conversation_id", "limit", "event_types", "start", "self"}
    for method in ("sql", "recent", "tail", "status"):
        ours, theirs = (
            set(inspect.signature(getattr(one, method)).parameters) for one in (remote.RemoteStore, type(server.service.store))
        )
        assert ours <= theirs
        assert theirs & kept == ours


def test_what_is_appended_is_what_the_library_reads(server: Served, store: remote.RemoteStore, name: str) -> None:
    at = dt.datetime(2026, 11, 20, 9, 41, tzinfo=dt.UTC)
    receipt = store.append(name, "tool.call", "ü", tool_name="track", duration_ms=1.5, metadata=b'{"a":1.00}', timestamp=at)
    assert (receipt.seq, receipt.conversation_id, receipt.duplicate) == (1, name, False)
    store.append(name, "t", None, metadata={"b": [1]})
    mine, theirs = store.recent(name), server.service.store.recent(name)
    assert mine.columns == theirs.columns == list(COLUMN_NAMES)
    assert mine.fetchall() == theirs.fetchall()
    assert mine.fetchall()[0][mine.columns.index("metadata")] == '{"a":1.00}'


def test_many_events_have_receipts_in_order(store: remote.RemoteStore, name: str) -> None:
    receipts = store.append_many(
        [Event(conversation_id=f"{name}{number % 3}", event_type="t", content=str(number)) for number in range(2500)]
    )
    assert [receipt.seq for receipt in receipts] == [number // 3 + 1 for number in range(2500)]
    assert store.append_many([]) == []


def test_an_answer_has_coverage_and_every_form(store: remote.RemoteStore, name: str) -> None:
    store.append(name, "t")
    found = store.sql("SELECT count(*) AS n FROM events WHERE conversation_id = $name", {"name": name}, require="complete")
    assert found.fetchall() == [(1,)]
    assert found.pl()["n"].to_list() == found.df()["n"].tolist() == [1]
    assert found.coverage.exact
    assert found.to_arrow().schema.metadata is None


def test_a_tail_gives_events_with_positions_to_go_on_from(server: Served, store: remote.RemoteStore, name: str) -> None:
    store.append_many([{"conversation_id": name, "event_type": "t", "content": str(number)} for number in range(3)])
    with store.tail(name, start="begin") as tail:
        found = gathered(tail, 2)
        position = tail.position
    assert [item.event["content"] for item in found] == ["0", "1"]
    assert found[0].event == dict(zip(COLUMN_NAMES, server.service.store.recent(name).fetchall()[0], strict=True))
    with store.tail(name, start=position) as tail:
        assert [item.event["content"] for item in gathered(tail, 1)] == ["2"]
        assert tail.read(timeout_s=0) == []


def gathered(tail: RemoteTail, count: int) -> list[Followed]:
    found: list[Followed] = []

    def enough() -> bool:
        found.extend(item for item in tail.read(limit=count - len(found), timeout_s=0.1) if isinstance(item, Followed))
        return len(found) >= count

    wait_until(enough, 120, f"{count} events")
    return found


def test_status_is_that_of_the_library(server: Served, store: remote.RemoteStore) -> None:
    found = store.status()
    assert (found.namespace, found.health) == ("default", "green")
    assert [tier.tier for tier in found.tiers] == ["hot", "warm", "cold"]


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda store: store.append("c", "not a type"), InvalidEvent),
        (lambda store: store.append("#", "t"), InvalidEvent),
        (lambda store: store.append_many([{"conversation_id": "c"}]), InvalidEvent),
        (lambda store: store.append("c", "t", timestamp=dt.datetime(2100, 1, 1, tzinfo=dt.UTC)), InvalidEvent),
        (lambda store: store.append("c", "t", expected_seq=-1), InvalidEvent),
        (lambda store: store.sql("SELEC"), QueryRefused),
        (lambda store: store.tail(start="yesterday"), QueryRefused),
        (lambda store: store.recent("c", limit="x"), QueryRefused),
    ],
)
def test_errors_are_the_librarys(
    store: remote.RemoteStore, act: Callable[[remote.RemoteStore], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        act(store)


def test_expected_seq_is_the_librarys(store: remote.RemoteStore, name: str) -> None:
    assert store.append(name, "t", expected_seq=0).seq == 1
    with pytest.raises(SequenceConflict) as found:
        store.append(name, "t", expected_seq=0)
    assert (found.value.conversation_id, found.value.last_seq) == (name, 1)


def test_an_append_whose_answer_is_lost_is_sent_again_and_stored_once(server: Served, name: str) -> None:
    line = Losing(answers=2)
    with losing(server, line) as store:
        assert store.append(name, "t").seq == 1
        line.answers = 1
        assert [receipt.seq for receipt in store.append_many([{"conversation_id": name, "event_type": "t"}] * 5)] == [
            2,
            3,
            4,
            5,
            6,
        ]
        line.answers = 1
        assert store.append(name, "t", expected_seq=6).seq == 7
        assert len(store.recent(name)) == 7


def test_an_append_that_gets_no_answer_is_unknown_and_retry_settles_it(server: Served, name: str) -> None:
    line = Losing(answers=10**6)
    with losing(server, line, deadline_s=0) as store:
        with pytest.raises(OutcomeUnknown) as found:
            store.append(name, "t")
        line.answers = 0
        assert found.value.was_stored()
        [receipt] = found.value.retry()
        assert (receipt.seq, receipt.duplicate) == (1, True)
        line.answers = 1
        with pytest.raises(OutcomeUnknown) as conditional:
            store.append(name, "t", expected_seq=1)
        assert conditional.value.was_stored()
        assert [receipt.seq for receipt in conditional.value.retry()] == [2]


def test_some_of_many_may_be_stored(server: Served, name: str) -> None:
    line = Losing()
    ahead = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
    with losing(server, line) as store, pytest.raises(PartialAppend) as found:
        store.append_many(
            [{"conversation_id": name, "event_type": "t"}, {"conversation_id": f"{name}2", "event_type": "t", "timestamp": ahead}]
        )
    assert [receipt is None for receipt in found.value.receipts] == [False, True]
    assert found.value.rest_indices == [1]
    assert isinstance(found.value.cause, InvalidEvent)


def test_a_server_that_is_away_is_unavailable() -> None:
    with remote.connect("http://127.0.0.1:1", deadline_s=0) as store:
        for act in (store.status, lambda: store.append("c", "t"), lambda: store.sql("SELECT 1"), store.tail):
            with pytest.raises(TierUnavailable, match="is the server running"):
                act()
    with pytest.raises(ConfigError, match="http"):
        remote.connect("localhost:8700")


def test_a_token_that_is_not_good_is_a_matter_of_settings(server: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    redis = server.service.settings.redis_url
    assert redis is not None
    folder = tmp_path_factory.mktemp("guarded") / "data"
    token = create(folder, "agent", ["append"]).text
    settings = settings_for(redis, folder).model_copy(update={"namespace": "guarded"})
    with served(settings) as guarded:
        with remote.connect(guarded.url, token=token) as store:
            assert store.append("c", "t").seq == 1
            with pytest.raises(ConfigError, match="scope"):
                store.sql("SELECT 1")
        with remote.connect(guarded.url, token="wrong") as store, pytest.raises(ConfigError, match="token"):
            store.status()
        assert "wrong" not in json.dumps(repr(store))
