"""append and append_many on real Redis: what is acknowledged is there, once, whatever happens to the server or the process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.appending import Configure
from tests.conftest import StartServer
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load, mask_url
from thermocline.errors import (
    Backpressure,
    ConfigError,
    InvalidEvent,
    OutcomeUnknown,
    PartialAppend,
    SequenceConflict,
    TierUnavailable,
)
from thermocline.event import Event, Receipt
from thermocline.ingest.append import Client
from thermocline.store import connect
from thermocline.tiers.opening import Tiers, open_tiers

ODD_CONTENTS = ["", "\x00", "é😀\u2028", '"\\\n\r\t', "x" * 100_000, "\ufeff{}", "\x7f"]
ODD_METADATA = [' { "a" : 1.00 } ', '{"k":"\\u0000\\ud83d\\ude00"}', '{"a":1,"a":2}', '{"n":18446744073709551615}', "{}"]


@pytest.fixture
def server(redis_server: StartServer, redis_binary: Path) -> RedisServer:
    return redis_server(redis_binary, options={"appendfsync": "always"})


@pytest.fixture
def tiers(server: RedisServer, configure: Configure) -> Iterator[Tiers]:
    with open_tiers(configure(server)) as opened:
        yield opened


@pytest.fixture
def client(tiers: Tiers) -> Iterator[Client]:
    with Client(tiers.settings, tiers=tiers) as made:
        yield made


def stored(settings: Settings) -> dict[tuple[str, int], str]:
    """(conversation, seq) → content of every event, as SQL sees them; each seq once."""
    with connect(settings) as store:
        rows = store.sql("SELECT conversation_id, seq, content FROM events").fetchall()
    found = {(conversation, seq): content for conversation, seq, content in rows}
    assert len(found) == len(rows)
    return found


def places(events: list[Event], receipts: list[Receipt]) -> dict[tuple[str, int], str]:
    return {(receipt.conversation_id, receipt.seq): event.content or "" for event, receipt in zip(events, receipts, strict=True)}


def test_every_value_comes_back_as_it_was_given(client: Client, tiers: Tiers) -> None:
    events = [
        Event(conversation_id="odd 対話", event_type="a.b", content=content, metadata=ODD_METADATA[index % 5], duration_ms=0.1,
              cost_usd=3, input_tokens=-(2**63), task_id="", status="é", timestamp="2026-01-01T00:00:00.000001+01:00")
        for index, content in enumerate(ODD_CONTENTS)
    ]  # fmt: skip
    receipts = client.append_many(events)
    assert [receipt.seq for receipt in receipts] == list(range(1, len(events) + 1))
    assert {receipt.durability for receipt in receipts} == {"fsync"}
    with connect(tiers.settings) as store:
        rows = store.sql("SELECT * EXCLUDE (ingested_at) FROM events ORDER BY seq").to_arrow().to_pylist()
    for event, receipt, row in zip(events, receipts, rows, strict=True):
        assert row["content"] == event.content
        assert row["metadata"] == event.metadata
        assert row["event_id"] == receipt.event_id
        assert (row["duration_ms"], row["cost_usd"], row["input_tokens"], row["output_tokens"]) == (0.1, 3.0, -(2**63), None)
        assert (row["task_id"], row["status"], row["agent_id"]) == ("", "é", None)
        assert row["timestamp"].isoformat() == "2025-12-31T23:00:00.000001+00:00"


def test_many_conversations_in_one_call_keep_their_orders(client: Client, tiers: Tiers) -> None:
    events = [Event(conversation_id=f"c{number % 37}", event_type="t", content=str(number)) for number in range(5000)]
    receipts = client.append_many(events)
    assert stored(tiers.settings) == places(events, receipts)
    assert [receipt.seq for receipt in receipts] == [number // 37 + 1 for number in range(5000)]


def test_threads_append_at_once_without_mixing_up_anything(client: Client, tiers: Tiers) -> None:
    events = [Event(conversation_id=f"c{number % 5}", event_type="t", content=str(number)) for number in range(400)]
    receipts: list[Receipt | None] = [None] * len(events)

    def work(start: int) -> None:
        for index in range(start, len(events), 8):
            event = events[index]
            receipts[index] = client.append(event.conversation_id, event.event_type, event.content)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(tiers.settings) == places(events, [receipt for receipt in receipts if receipt is not None])


def test_expected_seq_makes_one_of_two_writers_win(client: Client, tiers: Tiers) -> None:
    with Client(tiers.settings) as other:
        assert client.append("a", "t", expected_seq=0).seq == 1
        with pytest.raises(SequenceConflict) as caught:
            other.append("a", "t", expected_seq=0)
        assert caught.value.last_seq == 1
        assert other.append("a", "t", expected_seq=1).seq == 2


def test_a_given_id_is_stored_once_within_its_conversation(client: Client, tiers: Tiers) -> None:
    event_id = uuid.uuid4()
    first = client.append("a", "t", "1", event_id=event_id)
    again = client.append_many([Event(conversation_id="a", event_type="t", content=text, event_id=event_id) for text in "12"])
    elsewhere = client.append("b", "t", "1", event_id=event_id)
    assert (first.event_id, first.duplicate) == (str(event_id), False)
    assert [(receipt.seq, receipt.duplicate, receipt.event_id) for receipt in again] == [(1, True, str(event_id))] * 2
    assert (elsewhere.seq, elsewhere.duplicate) == (1, False)
    assert stored(tiers.settings) == {("a", 1): "1", ("b", 1): "1"}


def test_an_event_after_redis_clock_is_refused(client: Client, tiers: Tiers) -> None:
    ahead_us = time.time_ns() // 1000 + 600 * 1_000_000
    with pytest.raises(InvalidEvent, match=r"timestamp: is (599|600) s after Redis' clock"):
        client.append("a", "t", timestamp=ahead_us)
    with pytest.raises(PartialAppend) as caught:
        client.append_many(
            [Event(conversation_id=name, event_type="t", timestamp=at) for name, at in (("a", ahead_us), ("b", None))]
        )
    assert caught.value.rest_indices == [0]
    assert stored(tiers.settings) == {("b", 1): ""}


def test_a_killed_redis_loses_and_doubles_nothing(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    kept: dict[tuple[str, int], str] = {}
    stop = threading.Event()

    def work(name: str) -> None:
        with Client(settings) as client:
            made = 0
            while not stop.is_set():
                batch = [
                    Event(conversation_id=f"{name}-{number % 3}", event_type="t", content=f"{made + number}")
                    for number in range(20)
                ]
                made += 20
                kept.update(places(batch, all_of(client, batch)))

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for target in (300, 700, 1100):
        wait_until(lambda target=target: len(kept) >= target, 30, "appends go on")
        server.kill()
        server.start()
    wait_until(lambda: len(kept) >= 1500, 30, "appends go on after the last kill")
    stop.set()
    for thread in threads:
        thread.join()
    assert stored(settings) == kept


def all_of(client: Client, events: list[Event]) -> list[Receipt]:
    """Append until every event has its receipt, as docs of append_many say."""
    receipts: list[Receipt | None] = [None] * len(events)
    left = list(range(len(events)))
    call = lambda: client.append_many(events)  # noqa: E731
    while left:
        try:
            for index, receipt in zip(left, call(), strict=True):
                receipts[index] = receipt
            break
        except PartialAppend as exc:
            for index, receipt in zip(left, exc.receipts, strict=True):
                receipts[index] = receipt
            left, rest, cause = [left[index] for index in exc.rest_indices], exc.rest, exc.cause
            call = cause.retry if isinstance(cause, OutcomeUnknown) else lambda rest=rest: client.append_many(rest)  # type: ignore[misc]
        except TierUnavailable:
            continue
    return [receipt for receipt in receipts if receipt is not None]


def test_a_stopped_redis_leaves_an_append_in_doubt_until_retry(server: RedisServer, configure: Configure) -> None:
    settings = configure(server, ingest={"deadline_s": 1.5})
    with Client(settings) as client:
        client.append("a", "t", "1")
        server.pause()
        try:
            with pytest.raises(OutcomeUnknown) as caught:
                client.append("a", "t", "2")
        finally:
            server.resume()
        (receipt,) = caught.value.retry()
        assert receipt.seq == 2
        assert client.append("a", "t", "3").seq == 3
    assert stored(settings) == {("a", 1): "1", ("a", 2): "2", ("a", 3): "3"}


def test_a_redis_that_is_away_is_named_with_its_address(server: RedisServer, configure: Configure) -> None:
    settings = configure(server, ingest={"deadline_s": 1})
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        server.stop()
        with pytest.raises(TierUnavailable, match=f"Redis at {re.escape(mask_url(server.url))} .* is it running"):
            client.append("a", "t")
        with pytest.raises(PartialAppend) as caught:
            client.append_many([Event(conversation_id="a", event_type="t")])
        assert isinstance(caught.value.cause, TierUnavailable)
        server.start()
        assert appended(client, within_s=30).seq == 1


def appended(client: Client, within_s: float) -> Receipt:
    """Of one event, tried again while the store says that it is away, as when Redis' file takes longer than the deadline."""
    receipts: list[Receipt] = []

    def once() -> bool:
        with suppress(TierUnavailable):
            receipts.append(client.append("a", "t"))
        return bool(receipts)

    wait_until(once, within_s, "an append is taken")
    return receipts[0]


def test_acknowledged_events_that_redis_lost_are_reported(
    redis_server: StartServer, redis_binary: Path, configure: Configure
) -> None:
    server = redis_server(redis_binary, options={"appendfsync": "everysec"})
    settings = configure(server)
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        events = [Event(conversation_id=f"c{number % 20}", event_type="t", content=str(number)) for number in range(2000)]
        for start in range(0, 2000, 100):
            client.append_many(events[start : start + 100])
        wait_until(lambda: tiers.hot.facts().disk_ok, 10, "the append-only file is written")
        server.kill()
        server.cut_aof(20_000)
        server.start()
        receipts = client.append_many([Event(conversation_id=f"c{number}", event_type="t") for number in range(20)])
        assert min(receipt.seq for receipt in receipts) > 1_000_000
        there = sum(cut.events_total for cut in tiers.hot.cut())
        lost = 2000 + 20 - there
        assert lost > 0
        reported = tiers.hot.reported_losses()
        assert {era for _, era, _ in reported} == {1}
        assert sum(reported.values()) == lost


def test_a_wiped_redis_is_appended_to_when_its_ledger_says_so(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        client.append("a", "t", "1")
        Worker(tiers).once()
        tiers.hot.drop()
        assert client.append("a", "t", "2").seq > 1_000_000
    assert [content for _, content in sorted(stored(settings).items())] == ["1", "2"]


def test_a_full_redis_sheds_load(redis_server: StartServer, redis_binary: Path, configure: Configure) -> None:
    server = redis_server(redis_binary, options={"appendfsync": "no", "maxmemory": "6mb"})
    settings = configure(server)
    with Client(settings) as client:
        kept = 0
        with pytest.raises(Backpressure, match="maxmemory"):
            for _ in range(100):
                kept = client.append("a", "t", os.urandom(50_000).hex()).seq
        assert kept > 0
    assert len(stored(settings)) == kept


def test_too_much_unsettled_sheds_load(server: RedisServer, configure: Configure) -> None:
    settings = configure(server, hot={"unsettled_blocks_max": 100})
    with Client(settings) as client:
        with pytest.raises(Backpressure, match=r"hot\.unsettled_blocks_max") as caught:
            for _ in range(101):
                client.append("a", "t")
        assert caught.value.retry_after_s > 0
    assert len(stored(settings)) == 100


def test_a_redis_that_may_evict_is_refused(redis_server: StartServer, configure: Configure) -> None:
    server = redis_server(options={"maxmemory-policy": "allkeys-lru"})
    with Client(configure(server)) as client, pytest.raises(ConfigError, match="maxmemory-policy noeviction"):
        client.append("a", "t")


FORKING = """
import os, sys, thermocline
thermocline.append("a", "t", "before")
child = os.fork()
for number in range(50):
    thermocline.append("a", "t", f"{'parent' if child else 'child'} {number}")
if not child:
    sys.stdout.flush()
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_appends_with_connections_of_its_own(server: RedisServer, configure: Configure) -> None:
    settings = configure(server)
    environ = {**os.environ, "THERMOCLINE_DATA_DIR": str(settings.data_dir), "THERMOCLINE_REDIS_URL": server.url,
               "THERMOCLINE_HOT__SHARDS": "4"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", FORKING], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    contents = stored(settings)
    assert sorted(seq for _, seq in contents) == list(range(1, 102))
    for who in ("parent", "child"):
        mine = [content for _, content in sorted(contents.items()) if content.startswith(who)]
        assert mine == [f"{who} {number}" for number in range(50)]


def test_without_configuration_the_store_is_embedded(data_dir: Path) -> None:
    with Client(data_dir=data_dir) as client:
        assert client.append("a", "t", "x").seq == 1
        assert client.append("a", "t", "y").durability == "memory"
    assert stored(load({"data_dir": data_dir}, environ={})) == {("a", 1): "x", ("a", 2): "y"}
