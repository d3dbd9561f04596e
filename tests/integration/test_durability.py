"""How firmly an event is kept when its append returns: what is asked for, what the server can promise, what the receipt says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer
from tests.redis_calls import ask, calls
from tests.servers import RedisServer, redis_binaries, valkey_binary
from thermocline.config import Settings, load
from thermocline.doctor import examine
from thermocline.errors import ConfigError, OutcomeUnknown, PartialAppend, TierUnavailable
from thermocline.event import Event
from thermocline.ingest.append import Client
from thermocline.ingest.producer import Producer
from thermocline.store import connect

SettingsOf = Callable[..., Settings]
FAST = {"shards": 2, "timeout_s": 20, "connect_timeout_s": 0.1, "durable_lag_s": 0}


@pytest.fixture
def settings_of(tmp_path: Path) -> SettingsOf:
    def settings(server: RedisServer, **sections: Any) -> Settings:
        given = {"data_dir": tmp_path / "data", "redis_url": server.url, **sections, "hot": {**FAST, **sections.get("hot", {})}}
        return load(given, environ={})

    return settings


@pytest.fixture
def valkey(redis_server: StartServer) -> RedisServer:
    return redis_server(valkey_binary(), options={"appendfsync": "everysec"})


def said(settings: Settings) -> tuple[str, str]:
    """(verdict, text) of doctor about durability."""
    [finding] = [one for one in examine(settings) if one.subject == "durability"]
    return finding.verdict, finding.found


def test_an_append_that_asks_for_the_disk_waits_until_the_file_is_synced(valkey: RedisServer, settings_of: SettingsOf) -> None:
    settings = settings_of(valkey, ingest={"deadline_s": 60})
    with Client(settings) as plain, Client(settings, durability="fsync") as firm:
        assert plain.append("c", "t", "1").durability == "memory"
        assert calls(valkey, "waitaof") == 0
        assert firm.append("c", "t", "2").durability == "fsync"
        before = calls(valkey, "waitaof")
        receipts = firm.append_many([Event(conversation_id=f"c{number % 7}", event_type="t") for number in range(1000)])
        assert {receipt.durability for receipt in receipts} == {"fsync"}
        assert calls(valkey, "waitaof") - before == 1, "all blocks of a round wait once"
    with connect(settings) as store:
        assert store.sql("SELECT count(*) FROM events").fetchone() == (1002,)


def test_a_disk_that_is_not_synced_leaves_the_append_in_doubt_until_it_is(valkey: RedisServer, settings_of: SettingsOf) -> None:
    settings = settings_of(valkey, hot={"timeout_s": 0.3}, ingest={"deadline_s": 0.5})
    with Client(settings, durability="fsync") as client:
        ask(valkey, "CONFIG", "SET", "appendfsync", "no")
        ask(valkey, "CONFIG", "SET", "appendfsync", "everysec")
        retry = None
        for _ in range(60):  # each wait ends sooner than the file is synced, some of the time
            try:
                (receipt,) = retry() if retry else [client.append("c", "t", "1")]
                break
            except OutcomeUnknown as exc:
                assert "has not synced its file within 0.3 s (hot.timeout_s)" in str(exc)
                retry = exc.retry
        assert (receipt.seq, receipt.durability) == (1, "fsync")
    with connect(settings) as store:
        assert store.sql("SELECT content FROM events").fetchall() == [("1",)]


def test_a_producer_waits_for_the_disk_once_for_many_events(valkey: RedisServer, settings_of: SettingsOf) -> None:
    with Producer(settings_of(valkey, ingest={"deadline_s": 60}), durability="fsync") as producer:
        for number in range(5000):
            producer.append(f"c{number % 10}", "t", str(number))
        producer.flush()
        assert 1 <= calls(valkey, "waitaof") <= 100
    with connect(settings_of(valkey)) as store:
        assert store.sql("SELECT count(*), count(DISTINCT content) FROM events").fetchone() == (5000, 5000)


def test_a_server_that_syncs_each_write_needs_no_waiting(redis_server: StartServer, settings_of: SettingsOf) -> None:
    for binary in (*redis_binaries(), valkey_binary()):
        server = redis_server(binary, options={"appendfsync": "always"})
        settings = settings_of(server, namespace=f"v{binary.stat().st_size}")
        with Client(settings, durability="fsync") as client:
            assert client.append("c", "t").durability == "fsync"
        assert calls(server, "waitaof") == 0
        assert said(settings)[0] == "ok"


@pytest.mark.parametrize("options", [{"appendfsync": "everysec"}, {"appendfsync": "no"}])
def test_a_server_that_cannot_promise_the_disk_is_refused_before_anything_is_stored(
    redis_server: StartServer, redis_binary: Path, settings_of: SettingsOf, options: dict[str, str]
) -> None:
    settings = settings_of(redis_server(redis_binary, options=options))
    firm = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"durability": "fsync"})})
    with Client(firm) as client, pytest.raises(ConfigError, match=r'ingest\.durability is "fsync".*set appendfsync always'):
        client.append("c", "t")
    verdict, found = said(firm)
    assert verdict == "fail" and "set appendfsync always, or use Redis 7.2 or Valkey" in found
    with Producer(firm) as producer:
        producer.append("c", "t")
        with pytest.raises(PartialAppend, match="set appendfsync always"):
            producer.flush()
    with connect(settings) as store:
        assert store.sql("SELECT count(*) FROM events").fetchone() == (0,)


def test_an_append_that_asks_for_replicas_has_them_or_is_in_doubt(
    redis_server: StartServer, redis_binary: Path, settings_of: SettingsOf
) -> None:
    server = redis_server(redis_binary, options={"repl-diskless-sync-delay": 0}, tcp=True)
    settings = settings_of(server, hot={"timeout_s": 0.2}, ingest={"deadline_s": 0.3, "durability": "replicated"})
    assert said(settings)[0] == "fail" and "1 replicas must have each block" in said(settings)[1]
    with Client(settings) as client, pytest.raises(OutcomeUnknown, match="0 of 1 replicas"):
        client.append("c", "t", "1")


def test_what_the_server_can_promise_is_said_by_doctor(valkey: RedisServer, settings_of: SettingsOf) -> None:
    verdict, found = said(settings_of(valkey))
    assert verdict == "ok"
    assert "memory, fsync (WAITAOF: up to a second, until the file is synced next); ingest.durability is memory" in found


def test_a_user_who_may_not_wait_for_the_disk_is_told(valkey: RedisServer, settings_of: SettingsOf) -> None:
    settings = settings_of(valkey, ingest={"deadline_s": 0.5})
    with Client(settings) as client:
        client.append("c", "t")
    ask(valkey, "ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "+@all", "-waitaof")
    limited = settings.model_copy(update={"redis_url": valkey.url_of("limited", "pw")})
    with Client(limited, durability="fsync") as client, pytest.raises(TierUnavailable, match="the Redis user needs the commands"):
        client.append("c", "t")


def test_a_durability_that_does_not_exist_is_refused_by_name(valkey: RedisServer, settings_of: SettingsOf) -> None:
    with pytest.raises(ConfigError, match="durability: Input should be 'memory', 'fsync' or 'replicated', not 'disk'"):
        Producer(settings_of(valkey), durability="disk")  # type: ignore[arg-type]
