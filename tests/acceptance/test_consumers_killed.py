"""Consumers that die by a signal while they have an event, as users of other systems met it; named after the failure."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.archiving import append, settings_for, settle_all
from tests.servers import RedisServer
from tests.waiting import wait_until
from thermocline.archiver.settle import Settler
from thermocline.archiver.trim import Trimmer
from thermocline.config import Settings
from thermocline.store import Store, connect

CONSUMER = """
import os, signal, sys
from pathlib import Path
import msgspec
from thermocline.config import load
from thermocline.store import connect
settings = load(msgspec.json.decode(Path(sys.argv[1]).read_bytes()), environ={})
with connect(settings) as store, store.subscribe("g", ack_wait_s=0.3, deliveries_max=3, prefetch=20) as subscription:
    while deliveries := subscription.read(timeout_s=2):
        for delivery in deliveries:
            content = delivery.event["content"]
            if content == "13":
                os.kill(os.getpid(), signal.SIGSEGV)
            print(content, flush=True)
            delivery.ack()
"""
HOLDER = """
import sys
from pathlib import Path
import msgspec
from thermocline.config import load
from thermocline.store import connect
settings = load(msgspec.json.decode(Path(sys.argv[1]).read_bytes()), environ={})
with connect(settings) as store, store.subscribe("g", ack_wait_s=5, deliveries_max=1000, prefetch=3) as subscription:
    while True:
        for delivery in subscription.read(timeout_s=600):
            print(delivery.event["content"], flush=True)
"""


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer) -> Settings:
    found = settings_for(tmp_path, server)
    (tmp_path / "settings.json").write_bytes(msgspec.json.encode(found.model_dump(mode="json")))
    return found


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with connect(settings) as opened:
        yield opened


def started(program: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(folder / "settings.json")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_an_event_that_kills_its_consumer_every_time_is_parked_once_and_nothing_else_is(store: Store, tmp_path: Path) -> None:
    """KurrentDB#2748 and #3692: an event that crashes its consumer was delivered for ever, because only nacks were counted."""
    store.subscribe("g").close()
    append(store.tiers, 30)
    deaths, done = 0, Counter[str]()
    while True:
        process = started(CONSUMER, tmp_path)
        said, _ = process.communicate(timeout=240)
        done.update(said.split())
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGSEGV
        deaths += 1
    assert deaths == 3
    [parked] = store.parked("g")
    [(content,)] = store.sql(
        "SELECT content FROM events WHERE conversation_id = ? AND seq = ?", [parked.conversation_id, parked.seq]
    )
    assert content == "13" and parked.deliveries == 3
    assert done == Counter({str(number): 1 for number in range(30) if number != 13})


def test_what_a_consumer_had_when_it_was_killed_goes_to_another(store: Store, tmp_path: Path) -> None:
    """A consumer group that loses what a dead consumer held: pending for ever in plain Redis groups without XAUTOCLAIM."""
    with store.subscribe("g", ack_wait_s=3600, deliveries_max=1000, prefetch=4) as subscription:
        processes = [started(HOLDER, tmp_path) for _ in range(2)]
        append(store.tiers, 12)
        wait_until(lambda: store.groups()[0].lag_events == 0, 240, "the consumers have taken everything")
        for process in processes:
            process.kill()
            process.communicate()
        found = []
        while store.groups()[0].pending:
            for delivery in subscription.read(timeout_s=60):
                found.append(delivery.event["content"])
                assert delivery.ack()
    assert sorted(found, key=int) == [str(number) for number in range(12)]


def trimmed(store: Store, trimmer: Trimmer, now_s: list[float], at_s: float) -> int:
    now_s[0] = at_s
    return trimmer.step()


def test_trim_never_removes_an_entry_that_is_pending_in_a_live_group(store: Store) -> None:
    """Redis' XTRIM drops what consumers have pending (redis#8842, KEEPREF): then it is pending for ever and its content gone."""
    settings = store.settings
    with store.subscribe("g", ack_wait_s=3600) as subscription, store.subscribe("idle"):
        append(store.tiers, 20)
        epoch = store.tiers.ledger.take_epoch("test", time.time_ns() // 1000)
        [delivery] = subscription.read(timeout_s=60)
        settle_all(Settler(store.tiers, epoch))
        store.delete_group("idle")
        now_s = [0.0]
        trimmer = Trimmer(store.tiers, monotonic=lambda: now_s[0])
        trimmed(store, trimmer, now_s, 0)
        trimmed(store, trimmer, now_s, settings.hot.cache_window_s + 1)
        entries = {cut.shard: cut.entries for cut in store.tiers.hot.cut()}
        assert sum(entries.values()) > 0
        while more := subscription.read(10, timeout_s=1):
            assert all(one.ack() for one in more)
        trimmed(store, trimmer, now_s, settings.hot.cache_window_s + 2)
        held = {cut.shard: cut.entries for cut in store.tiers.hot.cut()}
        assert sum(held.values()) >= 1  # the one that is pending, and what came after it in its shard
        assert delivery.ack()
        trimmed(store, trimmer, now_s, settings.hot.cache_window_s + 3)
        assert sum(cut.entries for cut in store.tiers.hot.cut()) == 0


def test_a_group_that_does_not_go_on_stops_trimming_for_an_hour_at_most_and_loses_nothing(store: Store) -> None:
    """A group nobody reads keeps a log for ever where groups hold it without a bound."""
    with store.subscribe("g", ack_wait_s=0.3) as subscription:
        append(store.tiers, 20)
        epoch = store.tiers.ledger.take_epoch("test", time.time_ns() // 1000)
        settle_all(Settler(store.tiers, epoch))
        now_s = [0.0]
        trimmer = Trimmer(store.tiers, monotonic=lambda: now_s[0])
        window_s, hold_s = store.settings.hot.cache_window_s, store.settings.hot.hold_s_max
        trimmed(store, trimmer, now_s, 0)
        assert trimmed(store, trimmer, now_s, window_s + 1) == 0
        assert trimmed(store, trimmer, now_s, window_s + hold_s) == 0
        assert trimmed(store, trimmer, now_s, window_s + hold_s + 1) > 0
        assert sum(cut.entries for cut in store.tiers.hot.cut()) == 0
        found = []
        while deliveries := subscription.read(10, timeout_s=1):
            found += [delivery.event["content"] for delivery in deliveries if delivery.ack()]
        assert sorted(found, key=int) == [str(number) for number in range(20)]
