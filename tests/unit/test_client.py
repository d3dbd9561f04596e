"""append and append_many over a model store: receipts, and each way a call can end."""

from __future__ import annotations

import inspect
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import thermocline
from tests.model_store import NOW_US, ModelSession, ModelStore, ModelTiers
from thermocline.config import Settings
from thermocline.errors import (
    Backpressure,
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    SequenceConflict,
    ThermoclineError,
    TierCorrupt,
    TierUnavailable,
)
from thermocline.event import Event, Receipt
from thermocline.ingest import append as module
from thermocline.ingest import call
from thermocline.ingest.append import Client
from thermocline.ingest.appender import Appender
from thermocline.ingest.async_producer import AsyncProducer
from thermocline.ingest.producer import Producer
from thermocline.ingest.sending import Sending
from thermocline.ingest.source import settings_of

LATE_US = NOW_US + 400 * 1_000_000


def settings(**ingest: Any) -> Settings:
    return Settings(ingest={"deadline_s": 0.2, **ingest}, hot={"connect_timeout_s": 0.1})  # type: ignore[arg-type]


@pytest.fixture
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture
def client(store: ModelStore) -> Iterator[Client]:
    with Client(settings(block_events_max=2), tiers=ModelTiers(store)) as made:
        yield made


def event(conversation: str, content: str, **more: Any) -> Event:
    return Event(conversation_id=conversation, event_type="t", content=content, timestamp=more.pop("timestamp", NOW_US), **more)


def places(receipts: list[Receipt | None]) -> list[tuple[str, int] | None]:
    return [None if receipt is None else (receipt.conversation_id, receipt.seq) for receipt in receipts]


def test_append_gives_a_receipt(client: Client, store: ModelStore) -> None:
    receipt = client.append("a", "t", "hello", timestamp=NOW_US, task_id="1", metadata={"x": 1})
    assert receipt.conversation_id == "a"
    assert receipt.seq == 1
    assert receipt.durability == "memory"
    assert not receipt.duplicate
    assert str(uuid.UUID(receipt.event_id)) == receipt.event_id
    assert client.append("a", "t", timestamp=NOW_US).seq == 2
    assert store.contents("a") == ["hello", ""]


def test_append_many_gives_receipts_in_order_over_conversations_and_blocks(client: Client, store: ModelStore) -> None:
    events = [event("ab"[number % 2], str(number)) for number in range(9)]
    receipts = client.append_many(iter(events))
    assert places(list(receipts)) == [("ab"[number % 2], number // 2 + 1) for number in range(9)]
    assert len({receipt.event_id for receipt in receipts}) == 9
    assert store.contents("a") == ["0", "2", "4", "6", "8"]
    assert store.contents("b") == ["1", "3", "5", "7"]


def test_append_many_takes_mappings_and_nothing(client: Client, store: ModelStore) -> None:
    assert client.append_many([]) == []
    client.append_many([{"conversation_id": "a", "event_type": "t", "content": "x", "timestamp": NOW_US}])
    assert store.contents("a") == ["x"]


def test_given_ids_are_in_receipts_and_duplicates_name_the_first_copy(client: Client, store: ModelStore) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    first = client.append("a", "t", "1", event_id=ids[0], timestamp=NOW_US)
    assert (first.event_id, first.duplicate) == (ids[0], False)
    receipts = client.append_many(
        [event("a", "2", event_id=ids[1]), event("a", "1", event_id=ids[0]), event("a", "2", event_id=ids[1]), event("a", "3")]
    )
    assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [(2, False), (1, True), (2, True), (3, False)]
    assert [receipt.event_id for receipt in receipts[:3]] == [ids[1], ids[0], ids[1]]
    assert store.contents("a") == ["1", "2", "3"]


def test_nothing_is_sent_when_one_event_is_wrong(client: Client, store: ModelStore) -> None:
    with pytest.raises(InvalidEvent) as caught:
        client.append_many([event("a", "1"), event("a", "2"), {"conversation_id": "a", "event_type": "b a d"}])
    assert (caught.value.field, caught.value.index) == ("event_type", 2)
    assert str(caught.value).startswith("event 2: event_type: ")
    with pytest.raises(InvalidEvent) as caught:
        client.append_many([event("#", "1")])
    assert (caught.value.field, caught.value.index) == ("conversation_id", 0)
    assert store.sessions == 0


def test_expected_seq_guards_a_conversation(client: Client) -> None:
    assert client.append("a", "t", expected_seq=0, timestamp=NOW_US).seq == 1
    with pytest.raises(SequenceConflict) as caught:
        client.append("a", "t", expected_seq=0, timestamp=NOW_US)
    assert (caught.value.conversation_id, caught.value.expected_seq, caught.value.last_seq) == ("a", 0, 1)
    with pytest.raises(InvalidEvent, match="expected_seq"):
        client.append("a", "t", expected_seq=-1)


def test_a_late_event_alone_is_an_invalid_event(client: Client) -> None:
    with pytest.raises(InvalidEvent, match=r"^timestamp: is 400 s after Redis' clock") as caught:
        client.append("a", "t", timestamp=LATE_US)
    assert caught.value.index is None
    with pytest.raises(InvalidEvent) as caught:
        client.append_many([event("a", "1"), event("a", "2", timestamp=LATE_US)])
    assert caught.value.index == 1


def test_a_late_event_among_others_fails_its_conversation_from_its_block_on(client: Client, store: ModelStore) -> None:
    events = [
        event("a", "1"),
        event("b", "1"),
        event("a", "2"),
        event("a", "3", timestamp=LATE_US),
        event("a", "4"),
        event("a", "5"),
    ]
    with pytest.raises(PartialAppend) as caught:
        client.append_many(events)
    error = caught.value
    assert isinstance(error.cause, InvalidEvent)
    assert error.cause.field == "timestamp"
    assert error.rest_indices == [3, 4, 5]
    assert error.cause.index == error.rest_indices.index(3)
    assert error.rest == [events[index] for index in error.rest_indices]
    assert [receipt is None for receipt in error.receipts] == [index in error.rest_indices for index in range(6)]
    assert store.contents("b") == ["1"]


def test_a_store_that_sheds_load_says_when_to_come_back(client: Client, store: ModelStore) -> None:
    store.refusing = "BUSY"
    with pytest.raises(Backpressure) as caught:
        client.append("a", "t", timestamp=NOW_US)
    assert caught.value.retry_after_s == 1
    assert "thermocline status" in str(caught.value)
    with pytest.raises(PartialAppend) as partial:
        client.append_many([event("a", "1"), event("b", "1")])
    assert isinstance(partial.value.cause, Backpressure)
    assert partial.value.rest_indices == [0, 1]
    assert partial.value.receipts == [None, None]
    store.refusing = "FULL"
    with pytest.raises(Backpressure, match="maxmemory"):
        client.append("a", "t", timestamp=NOW_US)


def test_the_rest_keeps_the_time_its_events_were_given_at(client: Client, store: ModelStore) -> None:
    store.refusing = "BUSY"
    store.now_us = 1 << 60
    with pytest.raises(PartialAppend) as caught:
        client.append_many([{"conversation_id": "a", "event_type": "t"}])
    (rest,) = caught.value.rest
    assert isinstance(rest.timestamp, int)
    assert rest.timestamp > NOW_US / 2


def test_a_store_that_is_away_is_unavailable(client: Client, store: ModelStore) -> None:
    client.append("a", "t", timestamp=NOW_US)
    store.down = True
    with pytest.raises(TierUnavailable):
        client.append("a", "t")
    with pytest.raises(PartialAppend) as caught:
        client.append_many([event("a", "1")])
    assert isinstance(caught.value.cause, TierUnavailable)
    store.down = False
    assert client.append("a", "t", timestamp=NOW_US).seq == 2


def test_a_lost_reply_is_settled_within_the_call(client: Client, store: ModelStore) -> None:
    store.faults.extend(["lost after", "lost before"])
    assert client.append("a", "t", "x", timestamp=NOW_US, expected_seq=0).seq == 1
    assert store.contents("a") == ["x"]


def test_an_unknown_outcome_is_settled_by_retry(client: Client, store: ModelStore) -> None:
    store.faults.extend(["lost after"] * 500)
    with pytest.raises(OutcomeUnknown) as caught:
        client.append("a", "t", "x", timestamp=NOW_US)
    assert "retry()" in str(caught.value)
    with pytest.raises(OutcomeUnknown) as again:
        caught.value.retry()
    store.heal()
    (receipt,) = again.value.retry()
    assert receipt.seq == 1
    assert caught.value.retry() == [receipt]
    assert store.contents("a") == ["x"]
    assert client.append("a", "t", "y", timestamp=NOW_US).seq == 2


def test_what_the_first_try_took_counts_towards_the_deadline(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.append("c", "t", timestamp=NOW_US)
    left_s, resume, clock = [], Appender.resume, iter([10.0, 10.15])

    def counted(appender: Appender, sending: Sending, *, deadline_s: float) -> Any:
        left_s.append(deadline_s)
        return resume(appender, sending, deadline_s=deadline_s)

    monkeypatch.setattr(call, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Appender, "try_one", lambda appender, block, expected_seq, *, deadline_s: Sending([block], expected_seq))
    monkeypatch.setattr(Appender, "resume", counted)
    assert client.append("c", "t", timestamp=NOW_US).seq == 2
    assert left_s == [pytest.approx(0.05)]


def test_a_retry_may_end_in_a_refusal(client: Client, store: ModelStore) -> None:
    store.faults.extend(["lost before"] * 500)
    with pytest.raises(OutcomeUnknown) as caught:
        client.append("a", "t", "x", expected_seq=0, timestamp=NOW_US)
    store.heal()
    with Client(settings(), tiers=ModelTiers(store)) as other:
        other.append("a", "t", "y", timestamp=NOW_US)
    with pytest.raises(SequenceConflict):
        caught.value.retry()
    with pytest.raises(SequenceConflict):
        caught.value.retry()


def test_append_many_with_an_unknown_outcome_goes_on_by_retry(client: Client, store: ModelStore) -> None:
    events = [event(f"c{number % 3}", str(number)) for number in range(60)]
    store.faults.extend(["", *["lost after 1"] * 500])
    small = Client(settings(block_events_max=1, unacked_blocks_max=4), tiers=ModelTiers(store))
    with pytest.raises(PartialAppend) as caught, small:
        small.append_many(events)
    error = caught.value
    assert isinstance(error.cause, OutcomeUnknown)
    assert 0 < len(error.rest) < 60
    store.heal()
    receipts = error.cause.retry()
    for index, receipt in zip(error.rest_indices, receipts, strict=True):
        assert error.receipts[index] is None
        error.receipts[index] = receipt
    assert places(error.receipts) == [(f"c{number % 3}", number // 3 + 1) for number in range(60)]
    assert sorted(map(int, store.contents("c0") + store.contents("c1") + store.contents("c2"))) == list(range(60))


def test_a_retry_of_append_many_that_is_refused_is_partial_again(client: Client, store: ModelStore) -> None:
    events = [event(f"c{number}", str(number)) for number in range(60)]
    store.faults.extend(["", *["lost after 1"] * 500])
    with pytest.raises(PartialAppend) as caught, Client(settings(unacked_blocks_max=1), tiers=ModelTiers(store)) as small:
        small.append_many(events)
    rest = caught.value.rest
    assert isinstance(caught.value.cause, OutcomeUnknown)
    store.heal()
    store.refusing = "BUSY"
    with pytest.raises(PartialAppend) as again:
        caught.value.cause.retry()
    error = again.value
    assert isinstance(error.cause, Backpressure)
    assert len(error.receipts) == len(rest)
    assert error.rest == [rest[index] for index in error.rest_indices]
    store.refusing = ""
    assert len(client.append_many(error.rest)) == len(error.rest)
    assert len(store.stored) == len({content for _, _, content in store.stored}) == 60


def test_another_store_is_refused_by_every_connection(client: Client, store: ModelStore) -> None:
    client.append("a", "t", timestamp=NOW_US)
    store.wipe()
    store.wipe()
    for _ in range(3):
        with pytest.raises(TierCorrupt):
            client.append("a", "t", timestamp=NOW_US)
    assert store.stored == []


def test_a_busy_client_uses_several_connections_and_a_quiet_one_one(store: ModelStore) -> None:
    with Client(settings(sessions_max=3), tiers=ModelTiers(store)) as client:
        for _ in range(5):
            client.append("a", "t", timestamp=NOW_US)
        assert store.sessions == 1
        together = threading.Barrier(3)
        store.on_send = lambda: together.wait(5) and None
        threads = [threading.Thread(target=client.append, args=("a", "t"), kwargs={"timestamp": NOW_US}) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.sessions == 3
    assert len(store.stored) == 8


def test_an_interrupted_append_does_not_leave_its_number_to_another_event(client: Client, store: ModelStore) -> None:
    def interrupt() -> None:
        store.on_send = None
        raise KeyboardInterrupt

    client.append("a", "t", "1", timestamp=NOW_US)
    store.on_send = interrupt
    with pytest.raises(KeyboardInterrupt):
        client.append("a", "t", "2", timestamp=NOW_US)
    assert client.append("a", "t", "3", timestamp=NOW_US).seq == 2
    assert store.contents("a") == ["1", "3"]
    assert store.sessions == 2


def test_a_closed_client_says_so_and_leaves_given_tiers_open(store: ModelStore) -> None:
    tiers = ModelTiers(store)
    client = Client(settings(), tiers=tiers)
    client.append("a", "t", timestamp=NOW_US)
    client.close()
    client.close()
    assert not tiers.closed
    with pytest.raises(ThermoclineError, match="closed"):
        client.append("a", "t")


def test_settings_come_from_settings_mappings_files_or_arguments(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('namespace = "from-file"\n[ingest]\ndeadline_s = 3\n')
    assert settings_of(str(file), {}).namespace == "from-file"
    assert settings_of(file, {"namespace": "mine"}).namespace == "mine"
    assert settings_of({"namespace": "mine"}, {"data_dir": "x"}).data_dir == Path("x")
    given = settings()
    assert settings_of(given, {}) is given
    with pytest.raises(ConfigError, match="not both"):
        settings_of(given, {"namespace": "x"})
    with pytest.raises(ConfigError, match="no such setting"):
        Client(nonsense=1)


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in found if one.name not in ("self", "expected_seq")]


def test_every_append_takes_the_same_arguments() -> None:
    expected = parameters(module.append)
    assert [name for name, _, _ in expected] == list(Event.__struct_fields__)
    for other in (Client.append, Producer.append, AsyncProducer.append, thermocline.append):
        assert parameters(other) == expected
    assert inspect.signature(Client.append).parameters["expected_seq"].default is None
    assert parameters(Producer.__init__) == parameters(AsyncProducer.__init__)


def test_the_process_has_one_default_client(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(settings(), tiers=ModelTiers(store))
    monkeypatch.setattr(module, "_default", client)
    assert module.default_client() is client
    assert module.append("a", "t", "x", timestamp=NOW_US, status="ok").seq == 1
    assert [receipt.seq for receipt in module.append_many([event("a", "y")])] == [2]
    client.close()


def in_doubt(client: Client, store: ModelStore, fault: str) -> OutcomeUnknown:
    """The error of an append whose replies were all lost."""
    store.lasting_fault = fault
    with pytest.raises(OutcomeUnknown) as caught:
        client.append("a", "t", "x", timestamp=NOW_US)
    return caught.value


def test_whether_it_was_stored_can_be_asked_without_storing_it(client: Client, store: ModelStore) -> None:
    unknown = in_doubt(client, store, "lost after")
    with pytest.raises(OutcomeUnknown):
        unknown.was_stored()
    store.heal()
    assert unknown.was_stored() is True
    assert unknown.was_stored() is True
    assert unknown.retry()[0].seq == 1
    assert store.contents("a") == ["x"]
    assert client.append("a", "t", "y", timestamp=NOW_US).seq == 2


def test_what_was_not_stored_never_will_be_by_the_request_in_doubt(client: Client, store: ModelStore) -> None:
    requests: list[Any] = []
    send = ModelSession.send

    def noted(session: ModelSession, producer: str, sent: Any, *, deadline_s: float) -> Any:
        requests.append((session, producer, sent))
        return send(session, producer, sent, deadline_s=deadline_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelSession, "send", noted)
        unknown = in_doubt(client, store, "lost before")
    store.heal()
    assert unknown.was_stored() is False
    for session, producer, sent in requests:  # they arrive late
        assert [reply.code for reply in send(session, producer, sent, deadline_s=1)] == ["VOID"]
    assert store.stored == []
    assert unknown.was_stored() is False
    assert client.append("a", "t", "y", timestamp=NOW_US).seq == 1
    assert unknown.retry()[0].seq == 2
    assert unknown.was_stored() is True
    assert store.contents("a") == ["y", "x"]


def test_a_retry_after_a_look_whose_reply_was_lost_stores_it_once(client: Client, store: ModelStore) -> None:
    unknown = in_doubt(client, store, "lost before")
    store.lasting_fault = "lost after"
    with pytest.raises(OutcomeUnknown):
        unknown.was_stored()
    store.heal()
    assert unknown.retry()[0].seq == 1
    assert store.contents("a") == ["x"]


def test_of_several_events_all_must_be_stored(client: Client, store: ModelStore) -> None:
    store.faults.extend(["lost after 2", *["down"] * 1000])
    with pytest.raises(PartialAppend) as caught:
        client.append_many([event("a", str(number)) for number in range(9)])
    unknown = caught.value.cause
    assert isinstance(unknown, OutcomeUnknown)
    store.heal()
    assert unknown.was_stored() is False
    assert len(store.stored) == 4
    assert [receipt.seq for receipt in unknown.retry()] == list(range(1, 10))
    assert store.contents("a") == [str(number) for number in range(9)]


def test_a_store_that_was_replaced_cannot_say(client: Client, store: ModelStore) -> None:
    client.append("a", "t", "0", timestamp=NOW_US)
    unknown = in_doubt(client, store, "lost after")
    store.heal()
    store.wipe()
    with pytest.raises(OutcomeUnknown, match="replaced by a new one"):
        unknown.was_stored()


def test_after_seven_days_it_cannot_be_known_and_is_not_sent_again(
    client: Client, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = in_doubt(client, store, "lost after")
    store.heal()
    now = time.monotonic
    monkeypatch.setattr(call, "time", SimpleNamespace(monotonic=lambda: now() + 7 * 86_400))
    for ask in (unknown.was_stored, unknown.retry):
        with pytest.raises(OutcomeUnknown, match="more than 7 days ago"):
            ask()
    assert store.contents("a") == ["x"]
