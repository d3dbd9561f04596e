"""Producer and AsyncProducer over a model store: what is buffered, what comes back, and that nothing is ever dropped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.model_store import NOW_US, ModelStore, ModelTiers
from thermocline.config import Settings
from thermocline.errors import (
    Backpressure,
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    ThermoclineError,
    TierCorrupt,
    TierUnavailable,
)
from thermocline.ingest import delivery
from thermocline.ingest.async_producer import AsyncProducer
from thermocline.ingest.producer import Producer

LATE_US = NOW_US + 400 * 1_000_000


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "TRY_S", 0.05)


@pytest.fixture
def store() -> ModelStore:
    return ModelStore()


def settings(deadline_s: float = 5, **ingest: Any) -> Settings:
    return Settings(ingest={"deadline_s": deadline_s, **ingest}, hot={"connect_timeout_s": 0.01})  # type: ignore[arg-type]


Make = Callable[..., Producer]


@pytest.fixture
def make(store: ModelStore) -> Iterator[Make]:
    """A function that makes a Producer over the store; what is left open is closed."""
    made: list[Producer] = []

    def producer(deadline_s: float = 5, **given: Any) -> Producer:
        made.append(Producer(settings(deadline_s), tiers=ModelTiers(store), **given))
        return made[-1]

    yield producer
    store.down, store.refusing = False, ""
    store.heal()
    for one in made:
        try:
            one.close()
        except PartialAppend:
            pass


def append(producer: Producer, conversation: str, content: str, **more: Any) -> None:
    producer.append(conversation, more.pop("event_type", "t"), content, timestamp=more.pop("timestamp", NOW_US), **more)


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        threading.Event().wait(0.002)


def test_events_are_stored_in_the_order_of_their_calls(make: Make, store: ModelStore) -> None:
    with make() as producer:
        for number in numbers(3000):
            append(producer, f"c{int(number) % 7}", number)
    for conversation in range(7):
        assert store.contents(f"c{conversation}") == [number for number in numbers(3000) if int(number) % 7 == conversation]


def test_flush_returns_when_everything_before_it_is_stored(make: Make, store: ModelStore) -> None:
    producer = make(linger_ms=60_000)
    append(producer, "a", "1")
    began = time.monotonic()
    producer.flush()
    assert time.monotonic() - began < 5
    assert store.contents("a") == ["1"]
    producer.flush()


def test_the_linger_time_collects_events_into_one_block(make: Make, store: ModelStore) -> None:
    sends: list[int] = []
    store.on_send = lambda: sends.append(1)
    with make(linger_ms=200) as producer:
        for number in numbers(10):
            append(producer, "a", number)
        until(lambda: len(store.stored) == 10)
    assert len(sends) == 1


def test_a_full_block_does_not_linger(make: Make, store: ModelStore) -> None:
    producer = make(linger_ms=60_000, block_events_max=5)
    for number in numbers(5):
        append(producer, "a", number)
    until(lambda: len(store.stored) == 5)


def test_an_invalid_event_is_refused_at_once_and_alone(make: Make, store: ModelStore) -> None:
    with make() as producer:
        append(producer, "a", "1")
        with pytest.raises(InvalidEvent, match="event_type"):
            append(producer, "a", "2", event_type="b a d")
        append(producer, "a", "3")
    assert store.contents("a") == ["1", "3"]


def test_many_threads_share_a_producer(make: Make, store: ModelStore) -> None:
    with make(buffer_events_max=50) as producer:

        def work(name: str) -> None:
            for number in numbers(300):
                append(producer, name, number)

        threads = [threading.Thread(target=work, args=(f"thread-{index}",)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index in range(4):
        assert store.contents(f"thread-{index}") == numbers(300)


def test_a_store_that_is_away_fills_the_buffer_and_loses_nothing(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make(deadline_s=0.1, buffer_events_max=10)
    for number in numbers(10):
        append(producer, "a", number)
    with pytest.raises(Backpressure, match="buffer is full") as caught:
        append(producer, "a", "10")
    assert "ingest.buffer_events_max" in str(caught.value)
    with pytest.raises(TierUnavailable, match="10 events wait in this Producer"):
        producer.flush()
    store.down = False
    producer.flush(5)
    assert store.contents("a") == numbers(10)


def test_the_buffer_is_bounded_in_bytes_yet_takes_any_one_event(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make(deadline_s=0.05, buffer_bytes_max=1 << 20)
    append(producer, "a", "x" * 1_000_000)
    with pytest.raises(Backpressure):
        append(producer, "a", "x" * 1_000_000)
    store.down = False
    producer.flush(5)
    append(producer, "a", "x" * 1_000_000)
    producer.flush(5)
    assert len(store.stored) == 2


def test_an_append_that_waits_for_room_goes_on_when_there_is_some(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make(buffer_events_max=1)
    append(producer, "a", "1")
    waiting = threading.Thread(target=append, args=(producer, "a", "2"))
    waiting.start()
    store.down = False
    waiting.join(5)
    assert not waiting.is_alive()
    producer.flush()
    assert store.contents("a") == ["1", "2"]


def test_lost_replies_and_restarts_leave_every_event_once_and_in_order(make: Make, store: ModelStore) -> None:
    store.faults.extend(["lost after", "", "down", "lost before", "lost after 1", "", "lost after 3"] * 5)
    with make(block_events_max=3, linger_ms=0) as producer:
        for number in numbers(500):
            append(producer, f"c{int(number) % 3}", number)
            if number == "250":
                store.restart()
    stored = [store.contents(f"c{index}") for index in range(3)]
    assert stored == [[number for number in numbers(500) if int(number) % 3 == index] for index in range(3)]


def test_a_reply_lost_for_longer_than_a_try_is_resolved_later(make: Make, store: ModelStore) -> None:
    store.faults.extend(["lost after"] * 40)
    with make() as producer:
        append(producer, "a", "1")
        until(lambda: not store.faults)
    assert store.contents("a") == ["1"]


def test_shed_load_is_sent_again_in_order(make: Make, store: ModelStore) -> None:
    store.refusing = "BUSY"
    producer = make(deadline_s=0.1, block_events_max=2)
    for number in numbers(7):
        append(producer, "a", number)
    with pytest.raises(Backpressure, match="7 events wait in this Producer"):
        producer.flush()
    store.refusing = ""
    producer.flush(5)
    assert store.contents("a") == numbers(7)


def test_an_event_too_far_in_the_future_comes_back_alone(make: Make, store: ModelStore) -> None:
    producer = make()
    for number in numbers(6):
        append(producer, "a", number, timestamp=LATE_US if number in ("2", "4") else NOW_US, metadata=b'{"n": 1.0}')
    append(producer, "b", "x")
    with pytest.raises(PartialAppend) as caught:
        producer.flush()
    error = caught.value
    assert isinstance(error.cause, InvalidEvent)
    assert error.cause.field == "timestamp"
    assert [event.content for event in error.rest] == ["2", "4"]
    assert {event.conversation_id for event in error.rest} == {"a"}
    assert [event.metadata for event in error.rest] == ['{"n": 1.0}'] * 2
    assert error.receipts == [None, None]
    assert error.rest_indices == [0, 1]
    producer.flush()
    assert store.contents("a") == ["0", "1", "3", "5"]
    assert store.contents("b") == ["x"]
    append(producer, "a", "6")
    producer.flush()


def test_a_background_error_is_raised_by_the_next_append_which_takes_nothing(make: Make, store: ModelStore) -> None:
    producer = make(linger_ms=0)
    append(producer, "a", "late", timestamp=LATE_US)
    until(lambda: producer._buffer._failures)
    with pytest.raises(PartialAppend) as caught:
        append(producer, "a", "1")
    assert [event.content for event in caught.value.rest] == ["late"]
    append(producer, "a", "2")
    producer.flush()
    assert store.contents("a") == ["2"]


def test_a_background_error_is_raised_at_close_too(make: Make) -> None:
    producer = make()
    with pytest.raises(PartialAppend) as caught, producer:
        append(producer, "a", "late", timestamp=LATE_US)
    assert [event.content for event in caught.value.rest] == ["late"]
    producer.close()


def test_an_error_of_the_body_is_not_hidden_by_that_of_close(make: Make) -> None:
    with pytest.raises(PartialAppend) as caught, make() as producer:
        append(producer, "a", "late", timestamp=LATE_US)
        raise KeyError("body")
    assert isinstance(caught.value.__context__, KeyError) or isinstance(caught.value.__cause__, InvalidEvent)


def test_another_store_hands_its_events_back(make: Make, store: ModelStore) -> None:
    producer = make(linger_ms=0)
    append(producer, "a", "1")
    producer.flush()
    store.wipe()
    store.wipe()
    append(producer, "a", "2")
    with pytest.raises(PartialAppend) as caught:
        producer.flush()
    assert isinstance(caught.value.cause, TierCorrupt)
    assert [event.content for event in caught.value.rest] == ["2"]
    assert store.stored == []


def test_a_store_that_cannot_be_opened_hands_its_events_back_or_waits(make: Make, store: ModelStore) -> None:
    def refuse(_durability: str) -> Any:
        raise ConfigError("Redis may evict events: set maxmemory-policy noeviction")

    producer = make(linger_ms=0)
    producer._source._tiers.hot = type("Refusing", (), {"session": staticmethod(refuse)})()  # type: ignore[union-attr,misc]
    append(producer, "a", "1")
    with pytest.raises(PartialAppend) as caught:
        producer.flush()
    assert isinstance(caught.value.cause, ConfigError)
    assert [event.content for event in caught.value.rest] == ["1"]


def test_a_fault_of_ours_hands_its_events_back(make: Make, store: ModelStore) -> None:
    def fault() -> None:
        store.on_send = None
        raise ZeroDivisionError

    producer = make(linger_ms=0)
    store.on_send = fault
    append(producer, "a", "1")
    with pytest.raises(PartialAppend, match="internal error") as caught:
        producer.flush()
    assert isinstance(caught.value.cause.__cause__, ZeroDivisionError)
    append(producer, "a", "2")
    producer.flush()
    assert store.contents("a") == ["2"]


def test_a_thread_that_ends_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = make(linger_ms=0)
    append(producer, "a", "1")
    producer.flush()

    def fault() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(producer._buffer, "take", fault)
    append(producer, "a", "2")  # goes with the take under way; the next one is the faulty
    until(lambda: producer._buffer._failures)
    with pytest.raises(PartialAppend, match="thread ended with 0 events: ZeroDivisionError"):
        append(producer, "a", "3")
    with pytest.raises(ThermoclineError, match="closed"):
        append(producer, "a", "4")


def test_close_hands_back_what_could_not_be_sent(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make(deadline_s=0.1, block_events_max=2)
    for number in numbers(5):
        append(producer, f"c{int(number) % 2}", number)
    with pytest.raises(PartialAppend) as caught:
        producer.close()
    error = caught.value
    assert isinstance(error.cause, TierUnavailable)
    assert sorted(event.content or "" for event in error.rest) == numbers(5)
    with pytest.raises(ThermoclineError, match="closed"):
        append(producer, "a", "x")
    store.down = False
    with make() as second:
        for event in error.rest:
            append(second, event.conversation_id, event.content or "")
    assert store.contents("c0") == ["0", "2", "4"]


def test_close_with_a_reply_lost_hands_back_a_retry_that_sends_the_rest_too(make: Make, store: ModelStore) -> None:
    store.lasting_fault = "lost after"
    producer = make(deadline_s=0.1, linger_ms=0)
    append(producer, "a", "1")
    until(lambda: store.stored)
    append(producer, "a", "2")
    append(producer, "b", "1")
    with pytest.raises(PartialAppend) as caught:
        producer.close()
    error = caught.value
    assert isinstance(error.cause, OutcomeUnknown)
    assert [event.content for event in error.rest] == ["1", "2", "1"]
    store.heal()
    receipts = error.cause.retry()
    assert [(receipt.conversation_id, receipt.seq, receipt.durability) for receipt in receipts] == [
        ("a", 1, "memory"),
        ("a", 2, "memory"),
        ("b", 1, "memory"),
    ]
    assert store.contents("a") == ["1", "2"]


def test_what_failed_before_a_close_in_doubt_comes_back_with_it(make: Make, store: ModelStore) -> None:
    producer = make(deadline_s=0.1, linger_ms=0)
    append(producer, "late", "late", timestamp=LATE_US)
    until(lambda: producer._buffer._failures)
    store.lasting_fault = "lost after"
    producer._buffer._failures, failures = [], producer._buffer._failures
    append(producer, "a", "1")
    producer._buffer._failures = failures
    with pytest.raises(PartialAppend) as caught:
        producer.close()
    assert [event.content for event in caught.value.rest] == ["1", "late"]
    assert isinstance(caught.value.cause, OutcomeUnknown)
    store.heal()
    with pytest.raises(PartialAppend) as again:
        caught.value.cause.retry()
    error = again.value
    assert isinstance(error.cause, InvalidEvent)
    assert [event.content for event in error.rest] == ["late"]
    assert error.rest_indices == [1]
    assert error.receipts[0] is not None
    assert error.receipts[0].seq == 1
    assert store.contents("a") == ["1"]


def test_close_within_a_time_hands_back_what_was_left(make: Make, store: ModelStore) -> None:
    producer = make(block_events_max=1, buffer_events_max=2000)
    store.on_send = lambda: threading.Event().wait(0.02) and None
    for number in numbers(2000):
        append(producer, "a", number)
    with pytest.raises(PartialAppend) as caught:
        producer.close(0.0)
    assert store.contents("a") + [event.content for event in caught.value.rest] == numbers(2000)


def test_settings_of_its_own_are_checked(store: ModelStore) -> None:
    with pytest.raises(ConfigError, match="linger_ms"):
        Producer(settings(), tiers=ModelTiers(store), linger_ms=-1)
    with pytest.raises(ConfigError, match="block_events_max"):
        Producer(settings(), tiers=ModelTiers(store), block_events_max=501)


def test_a_producer_never_used_opens_nothing(make: Make, store: ModelStore) -> None:
    with make() as producer:
        producer.flush()
    assert store.sessions == 0


def test_coalescing_merges_consecutive_chunks_of_a_task(make: Make, store: ModelStore) -> None:
    with make(coalesce=True, linger_ms=60_000) as producer:
        for text in "Hel", "lo", " ":
            append(producer, "a", text, event_type="output.chunk", task_id="1")
        for text in "x", "y":
            append(producer, "b", text, event_type="output.chunk", task_id="1")
        append(producer, "a", "world", event_type="output.chunk", task_id="1")
        append(producer, "a", "!", event_type="output.chunk", task_id="2")
        append(producer, "a", "call", event_type="tool.call", task_id="2")
        append(producer, "a", "?", event_type="output.chunk", task_id="2")
        append(producer, "a", "?", event_type="output.chunk", task_id="2", metadata={})
        append(producer, "a", "?", event_type="output.chunk", task_id="2")
    assert store.contents("a") == ["Hello world", "!", "call", "?", "?", "?"]
    assert store.contents("b") == ["xy"]


def test_coalescing_keeps_to_the_linger_time_while_the_store_is_away(make: Make, store: ModelStore) -> None:
    store.down = True
    producer = make(coalesce=True, linger_ms=1)
    append(producer, "a", "1", event_type="output.chunk")
    until(lambda: not producer._buffer._waiting)
    append(producer, "a", "2", event_type="output.chunk")
    threading.Event().wait(0.01)
    append(producer, "a", "3", event_type="output.chunk")
    store.down = False
    producer.flush()
    assert store.contents("a") == ["1", "2", "3"]


def test_coalesced_events_give_all_their_room_back(make: Make, store: ModelStore) -> None:
    producer = make(coalesce=True, linger_ms=20)
    for turn in range(3):
        for number in numbers(200):
            append(producer, f"c{turn}", number, event_type="output.chunk", output_tokens=1)
        producer.flush()
        assert (producer._buffer._events, producer._buffer._bytes) == (0, 0)
    assert "".join(store.contents("c0")) == "".join(numbers(200))


def test_the_async_producer_stores_in_order(store: ModelStore) -> None:
    async def run() -> None:
        async with AsyncProducer(settings(), tiers=ModelTiers(store)) as producer:
            for number in numbers(100):
                await producer.append("a", "t", number, timestamp=NOW_US)
            await producer.flush()
            assert store.contents("a") == numbers(100)
            await producer.append("a", "t", "last", timestamp=NOW_US)

    asyncio.run(run())
    assert store.contents("a") == [*numbers(100), "last"]


def test_the_async_producer_never_blocks_the_loop(store: ModelStore) -> None:
    async def run() -> tuple[int, float]:
        store.down = True
        producer = AsyncProducer(settings(deadline_s=0.3), tiers=ModelTiers(store), buffer_events_max=1)
        await producer.append("a", "t", "1", timestamp=NOW_US)
        ticks, longest, last = 0, 0.0, time.monotonic()
        blocked = asyncio.ensure_future(producer.append("a", "t", "2", timestamp=NOW_US))
        flushing = asyncio.ensure_future(producer.flush())
        while not (blocked.done() and flushing.done()):
            await asyncio.sleep(0.001)
            now = time.monotonic()
            ticks, longest, last = ticks + 1, max(longest, now - last), now
        assert isinstance(blocked.exception(), Backpressure)
        assert isinstance(flushing.exception(), TierUnavailable)
        waiting = asyncio.ensure_future(producer.append("a", "t", "3", timestamp=NOW_US))
        await asyncio.sleep(0)
        store.down = False
        await waiting
        await producer.close()
        return ticks, longest

    ticks, longest = asyncio.run(run())
    assert ticks > 10
    assert longest < 0.25
    assert store.contents("a") == ["1", "3"]


def test_the_async_producer_raises_what_the_producer_raises(store: ModelStore) -> None:
    async def run() -> None:
        producer = AsyncProducer(settings(), tiers=ModelTiers(store))
        with pytest.raises(InvalidEvent):
            await producer.append("#", "t")
        await producer.append("a", "t", "late", timestamp=LATE_US)
        with pytest.raises(PartialAppend):
            await producer.flush()
        await producer.close()

    asyncio.run(run())
